//! JSON to the tree; plain JSON, none of the extensions its parser knows.

use std::sync::Arc;

use jsonc_parser::ast;
use jsonc_parser::common::Ranged;
use jsonc_parser::{CollectOptions, CommentCollectionStrategy, ParseOptions};

use crate::error::{ConfigError, Place};
use crate::line_of;
use crate::section::{Node, Section, Value};

pub(crate) fn parse(file: &Arc<str>, text: &str) -> Result<Section, ConfigError> {
    let strict = ParseOptions {
        allow_comments: false,
        allow_loose_object_property_names: false,
        allow_trailing_commas: false,
        allow_missing_commas: false,
        allow_single_quoted_strings: false,
        allow_hexadecimal_numbers: false,
        allow_unary_plus_numbers: false,
        allow_bare_decimal_point_numbers: false,
        allow_non_finite_numbers: false,
        allow_extended_string_escapes: false,
    };
    let collect = CollectOptions { comments: CommentCollectionStrategy::Off, tokens: false };
    let parsed = jsonc_parser::parse_to_ast(text, &collect, &strict).map_err(|e| {
        // Counted as everywhere else: the parser takes a lone carriage return for the end of a line, an editor does not.
        let place = Place { file: Arc::clone(file), line: line_of(text, e.range().start) };
        ConfigError::new(&place, format!("not valid JSON: {}", e.kind()))
    })?;
    let reader = Reader { file, text };
    match parsed.value {
        Some(ast::Value::Object(object)) => reader.object(&object, ""),
        _ => Err(ConfigError::new(&Place { file: Arc::clone(file), line: 1 }, "the file is not a JSON object")),
    }
}

struct Reader<'a> {
    file: &'a Arc<str>,
    text: &'a str,
}

impl Reader<'_> {
    fn place(&self, ranged: &impl Ranged) -> Place {
        Place { file: Arc::clone(self.file), line: line_of(self.text, ranged.start()) }
    }

    fn object(&self, object: &ast::Object<'_>, path: &str) -> Result<Section, ConfigError> {
        let mut section = Section::new(path, self.place(object));
        for property in &object.properties {
            let key = property.name.as_str();
            let place = self.place(property);
            if let Some(node) = self.value(&property.value, &section.path_of(key), place)? {
                section.push(key, node);
            }
        }
        Ok(section)
    }

    /// `null` is the same as leaving the key out.
    fn value(&self, value: &ast::Value<'_>, path: &str, place: Place) -> Result<Option<Node>, ConfigError> {
        let value = match value {
            ast::Value::StringLit(s) => Value::String(s.value.to_string()),
            ast::Value::NumberLit(n) => Value::Number(n.value.to_owned()),
            ast::Value::BooleanLit(b) => Value::Bool(b.value),
            ast::Value::Object(object) => Value::Section(self.object(object, path)?),
            ast::Value::Array(array) => {
                let mut list = Vec::new();
                for (index, item) in array.elements.iter().enumerate() {
                    list.extend(self.value(item, &format!("{path}[{index}]"), self.place(item))?);
                }
                Value::List(list)
            }
            ast::Value::NullKeyword(_) => return Ok(None),
        };
        Ok(Some(Node::new(value, path, place)))
    }
}
