//! From the text of a template to its checked form.

use super::functions;
use super::{Expression, Field, Kind, Piece, Value};

/// How deep parentheses and conditions may stand in each other.
const DEPTH_MAX: usize = 16;

/// What stands between braces, and the text before it.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    Action(String),
}

/// The pieces of a template.
pub(super) fn pieces(text: &str, fields: &[Field]) -> Result<Vec<Piece>, String> {
    let mut parts = split(text)?.into_iter();
    let (pieces, end) = block(&mut parts, fields, 0)?;
    match end {
        Stop::Template => Ok(pieces),
        Stop::Else(_) => Err("`else` without `if`".to_owned()),
        Stop::End => Err("`end` without `if`".to_owned()),
    }
}

/// Cuts at the braces and trims where `{{-` or `-}}` say so.
fn split(text: &str) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut rest = text;
    let mut trim_next = false;
    loop {
        let (before, after) = rest.split_once("{{").map_or((rest, None), |(b, a)| (b, Some(a)));
        let mut before = if trim_next { before.trim_start() } else { before };
        let Some(after) = after else {
            parts.push(Part::Text(before.to_owned()));
            return Ok(parts);
        };
        let body = match after.strip_prefix('-') {
            Some(body) if body.starts_with(char::is_whitespace) => {
                before = before.trim_end();
                body
            }
            _ => after,
        };
        parts.push(Part::Text(before.to_owned()));
        let end = closing(body)?;
        let (inside, tail) = body.split_at(end);
        rest = tail.strip_prefix("}}").unwrap_or(tail);
        let inside = match inside.strip_suffix('-') {
            Some(trimmed) if trimmed.ends_with(char::is_whitespace) => {
                trim_next = true;
                trimmed
            }
            _ => {
                trim_next = false;
                inside
            }
        };
        let inside = inside.trim();
        if !(inside.starts_with("/*") && inside.ends_with("*/")) {
            parts.push(Part::Action(inside.to_owned()));
        }
    }
}

/// Where the action that begins here ends; braces in quotes are not its end.
fn closing(body: &str) -> Result<usize, String> {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in body.char_indices() {
        match quote {
            Some('"') if escaped => escaped = false,
            Some('"') if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if c == '"' || c == '`' => quote = Some(c),
            None if body.get(at..).is_some_and(|rest| rest.starts_with("}}")) => return Ok(at),
            None => {}
        }
    }
    Err("an action `{{` has no end `}}`".to_owned())
}

/// What ended a block.
enum Stop {
    Template,
    End,
    /// With the condition of an `else if`.
    Else(Option<String>),
}

fn block(parts: &mut std::vec::IntoIter<Part>, fields: &[Field], depth: usize) -> Result<(Vec<Piece>, Stop), String> {
    if depth > DEPTH_MAX {
        return Err(format!("conditions stand more than {DEPTH_MAX} deep in each other"));
    }
    let mut pieces = Vec::new();
    while let Some(part) = parts.next() {
        let action = match part {
            Part::Text(text) if text.is_empty() => continue,
            Part::Text(text) => {
                if let Some(bad) = text.chars().find(|c| !(c.is_ascii_alphanumeric() || "/-_.".contains(*c))) {
                    return Err(format!("{bad:?} outside an action is not a character that a path may have"));
                }
                pieces.push(Piece::Text(text));
                continue;
            }
            Part::Action(action) => action,
        };
        let (word, rest) = action.split_once(char::is_whitespace).unwrap_or((&action, ""));
        match word {
            "if" => pieces.push(condition(rest, parts, fields, depth)?),
            "end" if rest.is_empty() => return Ok((pieces, Stop::End)),
            "else" if rest.is_empty() => return Ok((pieces, Stop::Else(None))),
            "else" => match rest.trim().strip_prefix("if ") {
                Some(condition) => return Ok((pieces, Stop::Else(Some(condition.to_owned())))),
                None => return Err(format!("`{action}` is not supported")),
            },
            "range" | "with" | "define" | "template" | "block" | "break" | "continue" => {
                return Err(format!("`{word}` is not supported; expected a pipeline, `if`, `else` or `end`"));
            }
            _ => {
                let (expression, kind) = pipeline(&action, fields)?;
                match kind {
                    Kind::Text | Kind::Number | Kind::Truth => pieces.push(Piece::Action(expression)),
                    Kind::List | Kind::Map => {
                        return Err(format!("`{action}` is {}, which is no part of a path; pick one of it with `index`", kind.name()));
                    }
                }
            }
        }
    }
    Ok((pieces, Stop::Template))
}

fn condition(first: &str, parts: &mut std::vec::IntoIter<Part>, fields: &[Field], depth: usize) -> Result<Piece, String> {
    let mut branches = Vec::new();
    let mut wanted = Some(first.to_owned());
    loop {
        let condition = wanted.as_deref().map(|text| pipeline(text, fields)).transpose()?;
        let (pieces, end) = block(parts, fields, depth + 1)?;
        let is_last = condition.is_none();
        let otherwise = match condition {
            Some((condition, _)) => {
                branches.push((condition, pieces));
                Vec::new()
            }
            None => pieces,
        };
        match end {
            Stop::End => return Ok(Piece::If(branches, otherwise)),
            Stop::Template => return Err("`if` without `end`".to_owned()),
            Stop::Else(_) if is_last => return Err("`else` twice".to_owned()),
            Stop::Else(next) => wanted = next,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Text(String),
    Number(i64),
    /// A field with its dots, without the first.
    Field(String),
    Word(String),
    Pipe,
    Open,
    Close,
}

fn pipeline(text: &str, fields: &[Field]) -> Result<(Expression, Kind), String> {
    let tokens = tokens(text)?;
    let mut reader = Reader { tokens: tokens.into_iter().peekable(), fields, text };
    let found = reader.pipeline(0)?;
    match reader.tokens.next() {
        None => Ok(found),
        Some(_) => Err(format!("`{text}` has a `)` too many")),
    }
}

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let tail = rest.get(first.len_utf8()..).unwrap_or_default();
        rest = match first {
            '|' => {
                tokens.push(Token::Pipe);
                tail
            }
            '(' => {
                tokens.push(Token::Open);
                tail
            }
            ')' => {
                tokens.push(Token::Close);
                tail
            }
            '`' => {
                let (inside, tail) = tail.split_once('`').ok_or_else(|| format!("`{text}` has a text without end"))?;
                tokens.push(Token::Text(inside.to_owned()));
                tail
            }
            '"' => {
                let (inside, tail) = quoted(tail).ok_or_else(|| format!("`{text}` has a text that is not one of Go's"))?;
                tokens.push(Token::Text(inside));
                tail
            }
            '.' => {
                let end = tail.find(|c: char| !(is_name(c) || c == '.')).unwrap_or(tail.len());
                let (name, tail) = tail.split_at(end);
                tokens.push(Token::Field(name.to_owned()));
                tail
            }
            '-' | '0'..='9' => {
                let end = tail.find(|c: char| !c.is_ascii_digit()).unwrap_or(tail.len());
                let number = rest.get(..=end).and_then(|digits| digits.parse().ok());
                tokens.push(Token::Number(number.ok_or_else(|| format!("`{text}` has a number that cannot be read"))?));
                tail.get(end..).unwrap_or_default()
            }
            c if is_name(c) => {
                let end = rest.find(|c: char| !is_name(c)).unwrap_or(rest.len());
                let (word, tail) = rest.split_at(end);
                tokens.push(Token::Word(word.to_owned()));
                tail
            }
            '$' => return Err("variables are not supported".to_owned()),
            other => return Err(format!("{other:?} in `{text}` is not supported")),
        };
        // `a.b` is one thing and `a .b` are two; here nothing but a parenthesis or a pipe may follow at once.
        let glued = rest.chars().next().is_some_and(|c| !(c.is_whitespace() || "|()".contains(c)));
        if glued && !matches!(tokens.last(), Some(Token::Pipe | Token::Open)) {
            return Err(format!("`{text}` is not supported; put spaces between its parts"));
        }
        rest = rest.trim_start();
    }
    Ok(tokens)
}

/// A text in double quotes, after the first quote: what it says and what follows it.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut out = String::new();
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '"' => return Some((out, text.get(at + 1..)?)),
            '\\' => out.push(match characters.next()?.1 {
                'n' => '\n',
                't' => '\t',
                c @ ('\\' | '"' | '\'') => c,
                _ => return None,
            }),
            c => out.push(c),
        }
    }
    None
}

struct Reader<'a> {
    tokens: std::iter::Peekable<std::vec::IntoIter<Token>>,
    fields: &'a [Field],
    text: &'a str,
}

impl Reader<'_> {
    /// Commands with pipes between them, up to the end or a closing parenthesis.
    fn pipeline(&mut self, depth: usize) -> Result<(Expression, Kind), String> {
        if depth > DEPTH_MAX {
            return Err(format!("`{}` has parentheses more than {DEPTH_MAX} deep", self.text));
        }
        let mut piped = self.command(None, depth)?;
        while self.tokens.next_if_eq(&Token::Pipe).is_some() {
            piped = self.command(Some(piped), depth)?;
        }
        Ok(piped)
    }

    fn command(&mut self, piped: Option<(Expression, Kind)>, depth: usize) -> Result<(Expression, Kind), String> {
        let function = match self.tokens.peek() {
            Some(Token::Word(word)) if word != "true" && word != "false" => Some(word.clone()),
            _ => None,
        };
        if let Some(name) = function {
            self.tokens.next();
            let mut arguments = Vec::new();
            while let Some(argument) = self.operand(depth)? {
                arguments.push(argument);
            }
            arguments.extend(piped);
            return call(&name, arguments);
        }
        let found = self.operand(depth)?.ok_or_else(|| format!("`{}` lacks a value", self.text))?;
        if piped.is_some() {
            return Err(format!("in `{}` a value is piped into what is no function", self.text));
        }
        match self.operand(depth)? {
            None => Ok(found),
            Some(_) => Err(format!("in `{}` a value has arguments, which only functions have", self.text)),
        }
    }

    /// A value, or nothing at the end of a command.
    fn operand(&mut self, depth: usize) -> Result<Option<(Expression, Kind)>, String> {
        if matches!(self.tokens.peek(), None | Some(Token::Pipe | Token::Close)) {
            return Ok(None);
        }
        Ok(match self.tokens.next() {
            Some(Token::Text(text)) => Some((Expression::Literal(Value::Text(text)), Kind::Text)),
            Some(Token::Number(number)) => Some((Expression::Literal(Value::Number(number)), Kind::Number)),
            Some(Token::Word(word)) if word == "true" || word == "false" => {
                Some((Expression::Literal(Value::Truth(word == "true")), Kind::Truth))
            }
            // A function without arguments.
            Some(Token::Word(word)) => Some(call(&word, Vec::new())?),
            Some(Token::Field(path)) => Some(self.field(&path)?),
            Some(Token::Open) => {
                let inside = self.pipeline(depth + 1)?;
                if self.tokens.next_if_eq(&Token::Close).is_none() {
                    return Err(format!("`{}` lacks a `)`", self.text));
                }
                Some(inside)
            }
            Some(Token::Pipe | Token::Close) | None => None,
        })
    }

    fn field(&self, path: &str) -> Result<(Expression, Kind), String> {
        if let Some((name, kind)) = self.fields.iter().find(|(name, _)| *name == path) {
            return Ok((Expression::Field(name), *kind));
        }
        // An entry of a map, by its key.
        if let Some((map, key)) = path.split_once('.')
            && let Some((name, Kind::Map)) = self.fields.iter().find(|(name, _)| *name == map)
            && !key.is_empty()
            && !key.contains('.')
        {
            return Ok((Expression::Entry(name, key.to_owned()), Kind::Text));
        }
        let known: Vec<String> = self.fields.iter().map(|(name, _)| format!(".{name}")).collect();
        Err(format!("there is no field `.{path}`, supported are {}", known.join(", ")))
    }
}

fn call(name: &str, arguments: Vec<(Expression, Kind)>) -> Result<(Expression, Kind), String> {
    let kinds: Vec<Kind> = arguments.iter().map(|(_, kind)| *kind).collect();
    let first = arguments.first().and_then(|(expression, _)| match expression {
        Expression::Literal(value) => Some(value.clone()),
        _ => None,
    });
    let (call, kind, used) = functions::find(name, &kinds, first.as_ref())?;
    Ok((Expression::Call(call, arguments.into_iter().skip(used).map(|(e, _)| e).collect()), kind))
}
