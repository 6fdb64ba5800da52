//! Settings that come from somewhere else than the file, and take the place of what it says.

use crate::error::Place;
use crate::section::{Node, Section, Value};

/// A setting from the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Override {
    /// A text.
    Text(String),
    /// A whole number.
    Number(i64),
    /// A switch that is on.
    True,
}

/// Puts a setting into a block of the file, in the place of what is there under this key. A block that is missing is added.
/// Errors about the setting name the flag instead of a line.
pub fn lay_over(top: &mut Section, block: &str, key: &str, flag: &str, setting: Override) {
    let place = Place { file: format!("flag -{flag}").into(), line: 0 };
    let value = match setting {
        Override::Text(text) => Value::String(text),
        Override::Number(number) => Value::Number(number.to_string()),
        Override::True => Value::Bool(true),
    };
    let node = Node::new(value, &format!("{block}.{key}"), place.clone());
    let mut pieces = top.blocks_mut(block);
    pieces.iter_mut().for_each(|piece| piece.remove(key));
    if let Some(first) = pieces.into_iter().next() {
        first.push(key, node);
        return;
    }
    let mut section = Section::new(block, place.clone());
    section.push(key, node);
    top.push(block, Node::new(Value::Section(section), block, place));
}
