//! HCL 1 to the tree. It is the language of SPIRE's files, and libraries for HCL are for its successor, which refuses what those
//! files may have: quoted keys, commas, several settings in a line. The language is small.

use std::iter::Peekable;
use std::str::Chars;
use std::sync::Arc;

use crate::error::{ConfigError, Place};
use crate::section::{Node, Section, Value};
use crate::{DEPTH_MAX, too_deep};

/// Labels of one block; SPIRE's have one. Each nests the tree once more.
const LABELS_MAX: usize = 8;
/// The hint where nothing better is known.
const FORM: &str = "each setting is `key = value`, each block `name { … }`";

pub(crate) fn parse(file: &Arc<str>, text: &str) -> Result<Section, ConfigError> {
    // What editors of Windows put before a text.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut reader = Reader { file, rest: text.chars().peekable(), line: 1, depth: 0 };
    let place = reader.place();
    reader.items("", place, false)
}

struct Reader<'a> {
    file: &'a Arc<str>,
    rest: Peekable<Chars<'a>>,
    line: usize,
    /// Blocks and lists around what is read: reading them recurses.
    depth: usize,
}

impl Reader<'_> {
    /// Reads what is one level further in.
    fn deeper<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, ConfigError>) -> Result<T, ConfigError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(too_deep(&self.place()));
        }
        let found = read(self);
        self.depth -= 1;
        found
    }

    fn place(&self) -> Place {
        Place { file: Arc::clone(self.file), line: self.line }
    }

    fn error(&self, what: impl std::fmt::Display) -> ConfigError {
        ConfigError::new(&self.place(), format!("not valid HCL: {what}"))
    }

    fn peek(&mut self) -> Option<char> {
        self.rest.peek().copied()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.rest.next();
        if next == Some('\n') {
            self.line += 1;
        }
        next
    }

    fn take_if(&mut self, wanted: char) -> bool {
        let found = self.peek() == Some(wanted);
        if found {
            self.next();
        }
        found
    }

    /// Everything from here on of which this holds.
    fn take_while(&mut self, holds: impl Fn(char) -> bool) -> String {
        let mut taken = String::new();
        while let Some(c) = self.peek().filter(|c| holds(*c)) {
            taken.push(c);
            self.next();
        }
        taken
    }

    /// White space, and comments of three kinds.
    fn skip(&mut self) -> Result<(), ConfigError> {
        loop {
            match self.peek() {
                Some(c) if c.is_whitespace() => {
                    self.next();
                }
                Some('#') => {
                    self.take_while(|c| c != '\n');
                }
                Some('/') => {
                    let begun = self.place();
                    self.next();
                    match self.next() {
                        Some('/') => {
                            self.take_while(|c| c != '\n');
                        }
                        Some('*') => self.skip_to_end_of_comment(&begun)?,
                        _ => return Err(self.error("a `/` stands alone").hint("comments begin with `#`, `//` or `/*`")),
                    }
                }
                _ => return Ok(()),
            }
        }
    }

    fn skip_to_end_of_comment(&mut self, begun: &Place) -> Result<(), ConfigError> {
        loop {
            match self.next() {
                Some('*') if self.peek() == Some('/') => {
                    self.next();
                    return Ok(());
                }
                Some(_) => {}
                None => return Err(ConfigError::new(begun, "not valid HCL: the comment does not end").hint("end it with `*/`")),
            }
        }
    }

    /// Settings and blocks up to the end of the file, or of the block they are in.
    fn items(&mut self, path: &str, place: Place, in_block: bool) -> Result<Section, ConfigError> {
        let mut section = Section::new(path, place.clone());
        loop {
            self.skip()?;
            match self.peek() {
                None if !in_block => return Ok(section),
                None => {
                    return Err(ConfigError::new(&place, "not valid HCL: the block that begins here does not end").hint("end it with `}`"));
                }
                Some('}') if in_block => {
                    self.next();
                    return Ok(section);
                }
                Some('}') => return Err(self.error("a `}` ends nothing").hint("count the braces before it")),
                Some(',') => {
                    self.next();
                }
                Some(_) => self.item(&mut section)?,
            }
        }
    }

    /// `key = value`, or `name "label" { … }` with any number of labels.
    fn item(&mut self, section: &mut Section) -> Result<(), ConfigError> {
        let place = self.place();
        let key = self.key()?;
        let path = section.path_of(&key);
        let mut labels = Vec::new();
        loop {
            self.skip()?;
            match self.peek() {
                _ if labels.len() > LABELS_MAX => {
                    return Err(ConfigError::new(&place, format!("not valid HCL: `{key}` has more than {LABELS_MAX} labels")).hint(FORM));
                }
                Some('=') if labels.is_empty() => {
                    self.next();
                    self.skip()?;
                    let node = self.value(&path, place)?;
                    section.push(&key, node);
                    return Ok(());
                }
                Some('{') => {
                    self.next();
                    let node = self.block(&path, &labels, place)?;
                    section.push(&key, node);
                    return Ok(());
                }
                Some('"') => labels.push(self.string(&path)?),
                Some(c) if is_first_of_word(c) => labels.push(self.word()),
                _ => return Err(ConfigError::new(&place, format!("not valid HCL: `{key}` has no value")).hint(FORM)),
            }
        }
    }

    /// A block with labels nests one section a label.
    fn block(&mut self, path: &str, labels: &[String], place: Place) -> Result<Node, ConfigError> {
        let section = match labels.split_first() {
            None => self.deeper(|r| r.items(path, place.clone(), true))?,
            Some((label, rest)) => {
                let mut outer = Section::new(path, place.clone());
                let inner = self.block(&format!("{path} {label:?}"), rest, place.clone())?;
                outer.push(label, inner);
                outer
            }
        };
        Ok(Node::new(Value::Section(section), path, place))
    }

    fn key(&mut self) -> Result<String, ConfigError> {
        match self.peek() {
            Some('"') => self.string("a key"),
            Some(c) if is_first_of_word(c) => Ok(self.word()),
            Some(c) => Err(self.error(format!("`{}` stands where a key should", c.escape_debug())).hint(FORM)),
            None => Err(self.error("the file ends where a key should stand").hint(FORM)),
        }
    }

    fn word(&mut self) -> String {
        self.take_while(|c| is_first_of_word(c) || c.is_numeric() || matches!(c, '-' | '.'))
    }

    fn value(&mut self, path: &str, place: Place) -> Result<Node, ConfigError> {
        let value = match self.peek() {
            Some('"') => Value::String(self.string(path)?),
            Some('<') => Value::String(self.heredoc(path)?),
            Some('[') => self.deeper(|r| r.list(path))?,
            Some('{') => {
                self.next();
                Value::Section(self.deeper(|r| r.items(path, place.clone(), true))?)
            }
            Some(c) if c == '-' || c.is_ascii_digit() => self.number(path)?,
            Some(c) if is_first_of_word(c) => match self.word().as_str() {
                "true" => Value::Bool(true),
                "false" => Value::Bool(false),
                word => {
                    let error = ConfigError::new(&place, format!("`{path}` has the bare word `{word}`"));
                    return Err(error.hint("put the text in double quotes"));
                }
            },
            _ => return Err(ConfigError::new(&place, format!("not valid HCL: `{path}` has no value")).hint(FORM)),
        };
        Ok(Node::new(value, path, place))
    }

    fn list(&mut self, path: &str) -> Result<Value, ConfigError> {
        let begun = self.place();
        self.next();
        let mut list = Vec::new();
        loop {
            self.skip()?;
            if self.take_if(']') {
                return Ok(Value::List(list));
            }
            if self.peek().is_none() {
                return Err(ConfigError::new(&begun, format!("not valid HCL: the list `{path}` does not end")).hint("end it with `]`"));
            }
            let place = self.place();
            list.push(self.value(&format!("{path}[{}]", list.len()), place)?);
            self.skip()?;
            if !self.take_if(',') && self.peek() != Some(']') {
                return Err(self
                    .error(format!("the list `{path}` has no comma after item {}", list.len()))
                    .hint("put commas between the items"));
            }
        }
    }

    /// Decimal, hexadecimal (`0x`) or octal (`0`), or a fraction, as it is written.
    fn number(&mut self, path: &str) -> Result<Value, ConfigError> {
        let sign = if self.take_if('-') { "-" } else { "" };
        let text = self.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '+'));
        let other_base = match text.strip_prefix('0') {
            Some(rest) if rest.starts_with(['x', 'X']) => Some(u64::from_str_radix(rest.get(1..).unwrap_or_default(), 16)),
            Some(rest) if !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_digit()) => Some(u64::from_str_radix(rest, 8)),
            _ => None,
        };
        match other_base {
            Some(Ok(number)) => Ok(Value::Number(format!("{sign}{number}"))),
            None if text.parse::<f64>().is_ok() && text.starts_with(|c: char| c.is_ascii_digit()) => {
                Ok(Value::Number(format!("{sign}{text}")))
            }
            _ => Err(self.error(format!("`{path}` is `{sign}{text}`, which is no number")).hint("put a text in double quotes")),
        }
    }

    /// A text in double quotes. `${…}` is for the environment and nobody has replaced it.
    fn string(&mut self, path: &str) -> Result<String, ConfigError> {
        let begun = self.place();
        let unclosed =
            || ConfigError::new(&begun, format!("not valid HCL: the text of `{path}` does not end in its line")).hint("end it with `\"`");
        self.next();
        let mut text = String::new();
        loop {
            match self.next() {
                Some('"') => return Ok(text),
                Some('\n') | None => return Err(unclosed()),
                Some('\\') => text.push(self.escaped(path)?),
                Some('$') if self.peek() == Some('{') => {
                    return Err(ConfigError::new(&begun, format!("`{path}` has a `${{…}}` in it"))
                        .hint("start with --expand-env to replace environment variables"));
                }
                Some(c) => text.push(c),
            }
        }
    }

    fn escaped(&mut self, path: &str) -> Result<char, ConfigError> {
        let wrong = |reader: &Self| {
            reader
                .error(format!("the text of `{path}` has a `\\` before something it does not stand before"))
                .hint("write `\\\\` for a `\\`")
        };
        let digits = match self.next() {
            Some(c @ ('"' | '\\')) => return Ok(c),
            Some('n') => return Ok('\n'),
            Some('r') => return Ok('\r'),
            Some('t') => return Ok('\t'),
            Some('a') => return Ok('\u{7}'),
            Some('b') => return Ok('\u{8}'),
            Some('f') => return Ok('\u{c}'),
            Some('v') => return Ok('\u{b}'),
            Some('u') => 4,
            Some('U') => 8,
            _ => return Err(wrong(self)),
        };
        let mut code = 0u32;
        for _ in 0..digits {
            let digit = self.peek().and_then(|c| c.to_digit(16)).ok_or_else(|| wrong(self))?;
            self.next();
            code = code.wrapping_mul(16).wrapping_add(digit);
        }
        char::from_u32(code).ok_or_else(|| wrong(self))
    }

    /// `<<EOF` up to a line with nothing but `EOF`; after `<<-EOF` the indentation of that line is taken from all.
    fn heredoc(&mut self, path: &str) -> Result<String, ConfigError> {
        let begun = self.place();
        let wrong = |what: &str, hint: &str| Err(ConfigError::new(&begun, format!("not valid HCL: `{path}` {what}")).hint(hint));
        self.next();
        if !self.take_if('<') {
            return wrong("has no value", FORM);
        }
        let indented = self.take_if('-');
        let marker = self.take_while(|c| c.is_alphanumeric() || c == '_');
        self.take_if('\r');
        if marker.is_empty() || !self.take_if('\n') {
            return wrong("begins a text over several lines wrongly", "write `<<EOF` and nothing behind it");
        }
        let mut lines: Vec<String> = Vec::new();
        loop {
            let line = self.take_while(|c| c != '\n');
            let is_end = line.trim_end_matches('\r').trim_start() == marker;
            if is_end {
                let indentation = line.get(..line.len() - line.trim_start().len()).unwrap_or_default();
                let in_step = indented && lines.iter().all(|line| line.starts_with(indentation));
                let cut = |line: &String| if in_step { line.strip_prefix(indentation).unwrap_or(line).to_owned() } else { line.clone() };
                return Ok(lines.iter().map(|line| cut(line) + "\n").collect());
            }
            if !self.take_if('\n') {
                return wrong("begins a text over several lines that does not end", "end it with a line that has the marker alone");
            }
            lines.push(line);
        }
    }
}

fn is_first_of_word(c: char) -> bool {
    c.is_alphabetic() || c == '_'
}
