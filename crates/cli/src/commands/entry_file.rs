//! Files with entries, and with IDs of entries, in SPIRE's form.

use std::io::Read as _;
use std::path::Path;

use countersign_identity::SpiffeId;
use countersign_wire::{id, types};
use serde_json::{Map, Value};

use crate::output::Failure;

/// Longest file: a million entries of the usual size, several times that in memory while they are read.
const FILE_BYTES_MAX: u64 = 1 << 30;

/// What becomes of members of an entry that nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum UnknownMembers {
    /// They are an error: somebody mistyped.
    Refused,
    /// As SPIRE does, for files that were written for it.
    Ignored,
}

/// `{"entries": […]}` in SPIRE's form, with SPIFFE IDs as texts.
pub(crate) fn read_entries(path: &Path, unknown: UnknownMembers) -> Result<Vec<types::Entry>, Failure> {
    let file = read_json(path)?;
    let read = |(index, e)| read_entry(e, unknown).map_err(|what| Failure::new(format!("entry {index}: {what}")));
    listed(&file, "entries")?.iter().enumerate().map(read).collect()
}

/// IDs from `{"ids": […]}`.
pub(crate) fn read_ids(path: &Path) -> Result<Vec<String>, Failure> {
    let file = read_json(path)?;
    texts("ids", listed(&file, "ids")?).map_err(Failure::new)
}

/// The list a file is there for.
fn listed<'a>(file: &'a Value, name: &str) -> Result<&'a [Value], Failure> {
    let members = Members::of(file).map_err(|_| Failure::new("the file is not an object"))?;
    members.list(name).map_err(Failure::new)?.ok_or_else(|| Failure::new(format!("the file has no `{name}` list")))
}

fn read_json(path: &Path) -> Result<Value, Failure> {
    let failed = |e: String| Failure::new(format!("cannot read `{}`: {e}", path.display()));
    let text = if path == Path::new("-") {
        whole(std::io::stdin(), FILE_BYTES_MAX)
    } else {
        std::fs::File::open(path).map_err(|e| e.to_string()).and_then(|file| whole(file, FILE_BYTES_MAX))
    };
    let text = text.map_err(failed)?;
    serde_json::from_str(&text).map_err(|e| failed(e.to_string()))
}

/// All of it, if it is no longer than this; never a part.
fn whole(input: impl std::io::Read, max: u64) -> Result<String, String> {
    let mut text = String::new();
    if input.take(max + 1).read_to_string(&mut text).map_err(|e| e.to_string())? as u64 > max {
        return Err(format!("it has more than the {max} bytes allowed; send it in several files"));
    }
    Ok(text)
}

fn read_entry(value: &Value, unknown: UnknownMembers) -> Result<types::Entry, String> {
    let members = Members::of(value)?;
    let known = [
        "selectors",
        "spiffe_id",
        "parent_id",
        "x509_svid_ttl",
        "jwt_svid_ttl",
        "federates_with",
        "entry_id",
        "admin",
        "downstream",
        "entryExpiry",
        "dns_names",
        "revision_number",
        "store_svid",
        "hint",
        "created_at",
        "additional_attributes",
    ];
    if let Some(name) = members.0.keys().find(|k| !known.contains(&k.as_str()))
        && unknown == UnknownMembers::Refused
    {
        return Err(format!("unknown member `{name}`"));
    }
    let parse = |name: &str| SpiffeId::parse(&members.text(name)?).map(|id| Some(id::to_wire(&id))).map_err(|e| format!("{name}: {e}"));
    let lifetime = |name: &str| i32::try_from(members.number(name)?).map_err(|_| format!("{name} is out of range"));
    let list = |name: &str| texts(name, members.list(name)?.unwrap_or_default());
    let selector = |s: &Value| {
        let part = |name: &str| Members::of(s)?.text(name);
        Ok(types::Selector { r#type: part("type")?, value: part("value")? })
    };
    let selectors: Result<_, String> = members.list("selectors")?.unwrap_or_default().iter().map(selector).collect();
    let additional_attributes = match members.member("additional_attributes", Some, "")? {
        None => None,
        Some(value) => {
            let within = |what| format!("`additional_attributes`: {what}");
            let extra = Members::of(value).map_err(within)?;
            Some(types::entry::AdditionalAttributes {
                disable_x509_svid_prefetch: extra.flag("disable_x509_svid_prefetch").map_err(within)?,
                jwt_svid_include_jti: extra.flag("jwt_svid_include_jti").map_err(within)?,
            })
        }
    };
    Ok(types::Entry {
        id: members.text("entry_id")?,
        spiffe_id: parse("spiffe_id")?,
        parent_id: parse("parent_id")?,
        selectors: selectors.map_err(|what| format!("`selectors`: {what}"))?,
        x509_svid_ttl: lifetime("x509_svid_ttl")?,
        jwt_svid_ttl: lifetime("jwt_svid_ttl")?,
        federates_with: list("federates_with")?,
        admin: members.flag("admin")?,
        downstream: members.flag("downstream")?,
        expires_at: members.number("entryExpiry")?,
        dns_names: list("dns_names")?,
        revision_number: 0,
        store_svid: members.flag("store_svid")?,
        hint: members.text("hint")?,
        created_at: 0,
        additional_attributes,
    })
}

fn texts(name: &str, list: &[Value]) -> Result<Vec<String>, String> {
    let text = |v: &Value| v.as_str().map(ToOwned::to_owned).ok_or_else(|| format!("`{name}` has an item that is not a text"));
    list.iter().map(text).collect()
}

/// The members of an object. A value of another type than asked for is an error: an end given as text would else be no end at all.
/// As in SPIRE the case of names does not count, and null is as good as nothing.
struct Members<'a>(&'a Map<String, Value>);

impl<'a> Members<'a> {
    fn of(value: &'a Value) -> Result<Self, String> {
        value.as_object().map(Self).ok_or_else(|| "it is not an object".to_owned())
    }

    fn text(&self, name: &str) -> Result<String, String> {
        Ok(self.member(name, Value::as_str, "a text")?.unwrap_or_default().to_owned())
    }

    fn flag(&self, name: &str) -> Result<bool, String> {
        Ok(self.member(name, Value::as_bool, "true or false")?.unwrap_or_default())
    }

    fn number(&self, name: &str) -> Result<i64, String> {
        Ok(self.member(name, Value::as_i64, "a whole number")?.unwrap_or_default())
    }

    fn list(&self, name: &str) -> Result<Option<&'a [Value]>, String> {
        self.member(name, |v| v.as_array().map(Vec::as_slice), "a list")
    }

    fn member<T>(&self, name: &str, read: impl FnOnce(&'a Value) -> Option<T>, kind: &str) -> Result<Option<T>, String> {
        let mut found = self.0.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value);
        let value = found.next();
        if found.next().is_some() {
            return Err(format!("`{name}` is there twice"));
        }
        value.filter(|v| !v.is_null()).map(|v| read(v).ok_or_else(|| format!("`{name}` is not {kind}"))).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry(more: &Value) -> Result<types::Entry, String> {
        let mut entry = json!({"spiffe_id": "spiffe://example.org/web", "parent_id": "spiffe://example.org/node"});
        entry.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        read_entry(&entry, UnknownMembers::Ignored)
    }

    #[test]
    fn a_value_of_another_type_is_an_error_and_never_left_out() {
        let check = |more: Value, said: &str| assert_eq!(entry(&more).expect_err("refused"), said, "{more}");
        check(json!({"entryExpiry": "1767225600"}), "`entryExpiry` is not a whole number");
        check(json!({"entryExpiry": 1.767_225_6e9}), "`entryExpiry` is not a whole number");
        check(json!({"x509_svid_ttl": "60"}), "`x509_svid_ttl` is not a whole number");
        check(json!({"dns_names": "a"}), "`dns_names` is not a list");
        check(json!({"dns_names": ["a", 1]}), "`dns_names` has an item that is not a text");
        check(json!({"federates_with": "x"}), "`federates_with` is not a list");
        check(json!({"store_svid": "true"}), "`store_svid` is not true or false");
        check(json!({"hint": 1}), "`hint` is not a text");
        check(json!({"selectors": {"type": "unix"}}), "`selectors` is not a list");
        check(json!({"selectors": ["unix:uid:0"]}), "`selectors`: it is not an object");
        check(json!({"selectors": [{"type": "unix", "value": 0}]}), "`selectors`: `value` is not a text");
        check(json!({"additional_attributes": true}), "`additional_attributes`: it is not an object");
        check(json!({"entryExpiry": 1, "ENTRYEXPIRY": 2}), "`entryExpiry` is there twice");
    }

    #[test]
    fn the_case_of_names_does_not_count_and_null_is_nothing() {
        let read = entry(&json!({"entryexpiry": 7, "Selectors": [{"Type": "unix", "VALUE": "uid:0"}], "hint": null})).expect("an entry");
        assert_eq!((read.expires_at, read.selectors.len(), read.hint.as_str()), (7, 1, ""));
        assert_eq!(read.selectors.first().map(|s| s.value.as_str()), Some("uid:0"));
    }

    #[test]
    fn an_id_that_is_not_a_text_is_an_error() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let read = |text: &str| {
            std::fs::write(file.path(), text).expect("written");
            read_ids(file.path()).map_err(|e| e.to_string())
        };
        assert_eq!(read(r#"{"IDs": ["a"]}"#), Ok(vec!["a".to_owned()]));
        assert_eq!(read(r#"{"ids": [1, 2]}"#), Err("`ids` has an item that is not a text".to_owned()));
        assert_eq!(read(r#"{"ids": "a"}"#), Err("`ids` is not a list".to_owned()));
    }

    #[test]
    fn a_member_nobody_knows_is_refused_where_it_is_a_mistake_and_passed_over_where_spire_does() {
        let entry = json!({"spiffe_id": "spiffe://example.org/web", "parent_id": "spiffe://example.org/node", "selector": []});
        assert_eq!(read_entry(&entry, UnknownMembers::Refused).expect_err("refused"), "unknown member `selector`");
        assert!(read_entry(&entry, UnknownMembers::Ignored).is_ok());
    }

    #[test]
    fn a_file_is_read_to_its_last_byte_or_refused_and_never_cut() {
        assert_eq!(whole("ünf".as_bytes(), 4).expect("read"), "ünf");
        let refused = whole("ünf!".as_bytes(), 4).expect_err("refused");
        assert_eq!(refused, "it has more than the 4 bytes allowed; send it in several files");
    }
}
