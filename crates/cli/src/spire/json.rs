//! Messages as SPIRE's commands print them for programs: proto field names, everything that has no value included, but for messages
//! that are not there; 64-bit integers as texts, bytes in base64.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost_reflect::{DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, ReflectMessage as _, Value as Field};
use serde_json::{Map, Value};

use crate::commands::fetch;
use crate::output::Failure;

static POOL: LazyLock<Option<DescriptorPool>> = LazyLock::new(|| DescriptorPool::decode(countersign_wire::FILE_DESCRIPTOR_SET).ok());

/// A message of this kind (its full name) as JSON.
pub(super) fn value<M: prost::Message>(kind: &str, message: &M) -> Result<Value, Failure> {
    let unknown = || Failure::new(format!("BUG: there is no message `{kind}`"));
    let descriptor = POOL.as_ref().and_then(|p| p.get_message_by_name(kind)).ok_or_else(unknown)?;
    let message = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice()).map_err(|_| unknown())?;
    Ok(object(&message))
}

fn object(message: &DynamicMessage) -> Value {
    if message.descriptor().full_name() == "google.protobuf.Struct" {
        return message.transcode_to::<prost_types::Struct>().map_or(Value::Null, |s| without_nulls(fetch::struct_json(s)));
    }
    let mut members = Map::new();
    for field in message.descriptor().fields() {
        // What can be absent and is, is left out: messages, and members of a choice.
        if field.supports_presence() && !message.has_field(&field) {
            continue;
        }
        members.insert(field.name().to_owned(), one(&field, &message.get_field(&field)));
    }
    Value::Object(members)
}

fn one(field: &FieldDescriptor, value: &Field) -> Value {
    match value {
        Field::Bool(b) => (*b).into(),
        Field::I32(n) => (*n).into(),
        Field::U32(n) => (*n).into(),
        Field::I64(n) => n.to_string().into(),
        Field::U64(n) => n.to_string().into(),
        Field::F32(n) => (*n).into(),
        Field::F64(n) => (*n).into(),
        Field::String(text) => text.as_str().into(),
        Field::Bytes(bytes) => STANDARD.encode(bytes).into(),
        Field::EnumNumber(number) => match field.kind() {
            Kind::Enum(names) => names.get_value(*number).map_or_else(|| (*number).into(), |v| v.name().into()),
            _ => (*number).into(),
        },
        Field::Message(message) => object(message),
        Field::List(items) => items.iter().map(|item| one(field, item)).collect(),
        Field::Map(entries) => Value::Object(entries.iter().map(|(key, value)| (map_key(key), map_value(field, value))).collect()),
    }
}

fn map_value(field: &FieldDescriptor, value: &Field) -> Value {
    match field.kind() {
        Kind::Message(entry) => one(&entry.map_entry_value_field(), value),
        _ => Value::Null,
    }
}

fn map_key(key: &MapKey) -> String {
    match key {
        MapKey::Bool(b) => b.to_string(),
        MapKey::I32(n) => n.to_string(),
        MapKey::I64(n) => n.to_string(),
        MapKey::U32(n) => n.to_string(),
        MapKey::U64(n) => n.to_string(),
        MapKey::String(text) => text.clone(),
    }
}

fn without_nulls(value: Value) -> Value {
    match value {
        Value::Object(members) => members.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k, without_nulls(v))).collect(),
        Value::Array(items) => items.into_iter().filter(|v| !v.is_null()).map(without_nulls).collect(),
        other => other,
    }
}
