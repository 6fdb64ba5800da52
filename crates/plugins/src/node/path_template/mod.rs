//! `agent_path_template`: the path of an agent's ID, made from what was attested, in the language of Go's `text/template`.
//!
//! The part of the language that a path needs, with Go's and Sprig's meaning. Everything is checked when the template is read:
//! functions, fields, kinds of arguments, characters that no path may have. What is left to go wrong with a node is its
//! own names: one that is missing, or has characters that no path may have.

mod functions;
mod parse;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use functions::Call;

/// Longest template, in bytes; a path has 2048 at most.
pub const TEMPLATE_BYTES_MAX: usize = 4096;
/// Longest text made on the way to a path, in bytes: what a node's names can make us build.
const TEXT_BYTES_MAX: usize = 64 << 10;

/// What a field or a function yields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A text.
    Text,
    /// A whole number.
    Number,
    /// True or false.
    Truth,
    /// A list of texts.
    List,
    /// Texts by name.
    Map,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Self::Text => "a text",
            Self::Number => "a number",
            Self::Truth => "true or false",
            Self::List => "a list",
            Self::Map => "a map",
        }
    }
}

/// What a field holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A text.
    Text(String),
    /// A whole number.
    Number(i64),
    /// True or false.
    Truth(bool),
    /// A list of texts.
    List(Vec<String>),
    /// Texts by name.
    Map(BTreeMap<String, String>),
}

impl Value {
    const fn kind(&self) -> Kind {
        match self {
            Self::Text(_) => Kind::Text,
            Self::Number(_) => Kind::Number,
            Self::Truth(_) => Kind::Truth,
            Self::List(_) => Kind::List,
            Self::Map(_) => Kind::Map,
        }
    }

    /// Go's truth: not the zero value.
    fn is_true(&self) -> bool {
        match self {
            Self::Text(text) => !text.is_empty(),
            Self::Number(number) => *number != 0,
            Self::Truth(truth) => *truth,
            Self::List(list) => !list.is_empty(),
            Self::Map(map) => !map.is_empty(),
        }
    }

    fn to_text(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Number(number) => number.to_string(),
            Self::Truth(truth) => truth.to_string(),
            Self::List(list) => format!("[{}]", list.join(" ")),
            Self::Map(_) => "map".to_owned(),
        }
    }
}

/// A field that a template may use.
pub type Field = (&'static str, Kind);

/// A template that was checked.
#[derive(Debug, Clone)]
pub struct Template(Vec<Piece>);

#[derive(Debug, Clone)]
enum Piece {
    Text(String),
    Action(Expression),
    If(Vec<(Expression, Vec<Piece>)>, Vec<Piece>),
}

#[derive(Debug, Clone)]
enum Expression {
    Literal(Value),
    Field(&'static str),
    Entry(&'static str, String),
    Call(Call, Vec<Expression>),
}

impl Template {
    /// Reads a template that uses these fields.
    ///
    /// # Errors
    /// What in it is not supported, or could not become a path.
    pub fn parse(text: &str, fields: &[Field]) -> Result<Self, String> {
        if text.len() > TEMPLATE_BYTES_MAX {
            return Err(format!("the template has {} bytes, more than the {TEMPLATE_BYTES_MAX} allowed", text.len()));
        }
        let pieces = parse::pieces(text, fields)?;
        if begins_with_slash(&pieces) == Some(false) {
            return Err("the template does not begin with `/`".to_owned());
        }
        Ok(Self(pieces))
    }

    /// The path for these fields. Fields that are not there count as empty.
    ///
    /// # Errors
    /// What this template needs and these fields do not have.
    pub fn render(&self, fields: &BTreeMap<&'static str, Value>) -> Result<String, String> {
        let mut out = String::new();
        render(&self.0, fields, &mut out)?;
        Ok(out)
    }
}

/// Whether the result begins with a slash, as far as that can be said without a node.
fn begins_with_slash(pieces: &[Piece]) -> Option<bool> {
    match pieces.first() {
        Some(Piece::Text(text)) => Some(text.starts_with('/')),
        Some(Piece::Action(Expression::Literal(value))) => Some(value.to_text().starts_with('/')),
        // What is attested is a name of something, never a path with its first slash.
        Some(Piece::Action(Expression::Field(_) | Expression::Entry(..))) => Some(false),
        Some(Piece::Action(Expression::Call(..))) => None,
        Some(Piece::If(branches, otherwise)) => {
            let of_branches = branches.iter().map(|(_, pieces)| pieces.as_slice());
            let known = of_branches.chain([otherwise.as_slice()]).map(begins_with_slash);
            if known.clone().any(|k| k == Some(false)) { Some(false) } else { None }
        }
        None => Some(false),
    }
}

fn render(pieces: &[Piece], fields: &BTreeMap<&'static str, Value>, out: &mut String) -> Result<(), String> {
    for piece in pieces {
        match piece {
            Piece::Text(text) => out.push_str(text),
            Piece::Action(expression) => out.push_str(&evaluate(expression, fields)?.to_text()),
            Piece::If(branches, otherwise) => {
                let mut chosen = otherwise;
                for (condition, pieces) in branches {
                    if evaluate(condition, fields)?.is_true() {
                        chosen = pieces;
                        break;
                    }
                }
                render(chosen, fields, out)?;
            }
        }
        if out.len() > TEXT_BYTES_MAX {
            return Err("the path becomes too long".to_owned());
        }
    }
    Ok(())
}

fn evaluate(expression: &Expression, fields: &BTreeMap<&'static str, Value>) -> Result<Value, String> {
    match expression {
        Expression::Literal(value) => Ok(value.clone()),
        Expression::Field(name) => Ok(fields.get(name).cloned().unwrap_or(Value::Text(String::new()))),
        Expression::Entry(name, key) => match fields.get(name) {
            Some(Value::Map(map)) => map.get(key).cloned().map(Value::Text),
            _ => None,
        }
        .ok_or_else(|| format!("there is no `{key}` in `.{name}`")),
        // Go stops at the first argument that decides, so that the others need not be there.
        Expression::Call(call, arguments) if matches!(call.name(), "and" | "or") => {
            let mut value = Value::Truth(false);
            for argument in arguments {
                value = evaluate(argument, fields)?;
                if value.is_true() == (call.name() == "or") {
                    break;
                }
            }
            Ok(value)
        }
        Expression::Call(call, arguments) => {
            let values = arguments.iter().map(|a| evaluate(a, fields)).collect::<Result<Vec<_>, _>>()?;
            let value = call.call(&values)?;
            if matches!(&value, Value::Text(text) if text.len() > TEXT_BYTES_MAX) {
                return Err(format!("what `{}` makes becomes too long", call.name()));
            }
            Ok(value)
        }
    }
}
