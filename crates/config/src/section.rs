//! The tree, and how settings are taken out of it.

use std::time::Duration;

use crate::error::{ConfigError, Place};

/// One value with its place.
#[derive(Debug, Clone)]
pub struct Node {
    value: Value,
    path: String,
    place: Place,
}

#[derive(Debug, Clone)]
pub(crate) enum Value {
    String(String),
    Number(String),
    Bool(bool),
    List(Vec<Node>),
    Section(Section),
}

impl Value {
    fn kind(&self) -> &'static str {
        match self {
            Self::String(_) => "a string",
            Self::Number(_) => "a number",
            Self::Bool(_) => "true or false",
            Self::List(_) => "a list",
            Self::Section(_) => "a block",
        }
    }
}

/// A setting and where it stands, for checks that only its reader can make.
#[derive(Debug, Clone)]
pub struct Spanned<T> {
    /// The setting.
    pub value: T,
    path: String,
    place: Place,
}

impl<T> Spanned<T> {
    /// An error at this setting, beginning with its key.
    pub fn error(&self, what: impl std::fmt::Display) -> ConfigError {
        ConfigError::new(&self.place, format!("`{}`: {what}", self.path))
    }

    /// The same place with another value.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Spanned<U> {
        Spanned { value: f(self.value), path: self.path, place: self.place }
    }

    /// Parses the setting; an error stands at its place.
    ///
    /// # Errors
    /// What the parser says.
    pub fn parse<U, E: std::fmt::Display>(&self, f: impl FnOnce(&T) -> Result<U, E>) -> Result<U, ConfigError> {
        f(&self.value).map_err(|e| self.error(e))
    }
}

/// A block: keys and values in file order. Readers take what they know and then call [`Section::finish`].
/// Keys match without regard to case, as in SPIRE.
#[derive(Debug, Clone)]
pub struct Section {
    path: String,
    place: Place,
    items: Vec<(String, Node)>,
    known: Vec<&'static str>,
}

impl Node {
    pub(crate) fn new(value: Value, path: &str, place: Place) -> Self {
        Self { value, path: path.to_owned(), place }
    }

    pub(crate) fn value(&self) -> &Value {
        &self.value
    }

    fn expected(&self, what: &str) -> ConfigError {
        ConfigError::new(&self.place, format!("`{}` is {}, expected {what}", self.path, self.value.kind()))
    }

    fn spanned<T>(&self, value: T) -> Spanned<T> {
        Spanned { value, path: self.path.clone(), place: self.place.clone() }
    }

    fn string(&self) -> Result<Spanned<String>, ConfigError> {
        match &self.value {
            Value::String(s) => Ok(self.spanned(s.clone())),
            _ => Err(self.expected("a string in double quotes")),
        }
    }

    fn sections_mut(&mut self) -> Vec<&mut Section> {
        match &mut self.value {
            Value::Section(section) => vec![section],
            Value::List(list) => list.iter_mut().flat_map(Self::sections_mut).collect(),
            _ => Vec::new(),
        }
    }

    /// One section, or the sections of a list, which is how JSON writes a repeated block.
    fn sections(self) -> Result<Vec<Section>, ConfigError> {
        match self.value {
            Value::Section(section) => Ok(vec![section]),
            Value::List(list) => list.into_iter().try_fold(Vec::new(), |mut all, node| {
                all.extend(node.sections()?);
                Ok(all)
            }),
            _ => Err(self.expected("a block")),
        }
    }
}

impl Section {
    pub(crate) fn new(path: &str, place: Place) -> Self {
        Self { path: path.to_owned(), place, items: Vec::new(), known: Vec::new() }
    }

    /// An empty section, for a block that may be left out.
    pub fn empty(path: &str, file: &str) -> Self {
        Self::new(path, Place { file: file.into(), line: 0 })
    }

    pub(crate) fn push(&mut self, key: &str, node: Node) {
        self.items.push((key.to_owned(), node));
    }

    pub(crate) fn items(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.items.iter().map(|(key, node)| (key.as_str(), node))
    }

    /// All blocks of this name: it may be written in several pieces, and JSON may put them into a list.
    pub(crate) fn blocks_mut(&mut self, name: &str) -> Vec<&mut Section> {
        let nodes = self.items.iter_mut().filter(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, node)| node);
        nodes.flat_map(Node::sections_mut).collect()
    }

    pub(crate) fn remove(&mut self, key: &str) {
        self.items.retain(|(name, _)| !name.eq_ignore_ascii_case(key));
    }

    pub(crate) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Where the block begins.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// The keys from the top to this block.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Whether nothing is left in it.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// An error about the block as a whole.
    pub fn error(&self, what: impl std::fmt::Display) -> ConfigError {
        let about = if self.path.is_empty() { String::new() } else { format!("`{}`: ", self.path) };
        ConfigError::new(&self.place, format!("{about}{what}"))
    }

    /// SPIRE's sentence for a key that must be there.
    pub fn missing(&self, key: &str) -> ConfigError {
        ConfigError::new(&self.place, format!("{key} must be configured")).hint(format!("add `{key} = …` to the `{}` block", self.path))
    }

    fn take_all(&mut self, key: &'static str) -> Vec<Node> {
        self.known.push(key);
        let mut taken = Vec::new();
        let mut index = 0;
        while index < self.items.len() {
            if self.items.get(index).is_some_and(|(name, _)| name.eq_ignore_ascii_case(key)) {
                taken.push(self.items.remove(index).1);
            } else {
                index += 1;
            }
        }
        taken
    }

    fn take(&mut self, key: &'static str) -> Result<Option<Node>, ConfigError> {
        let mut all = self.take_all(key).into_iter();
        let first = all.next();
        if let (Some(first), Some(second)) = (&first, all.next()) {
            let message = format!("`{}` is set twice, first in line {}", second.path, first.place.line);
            return Err(ConfigError::new(&second.place, message).hint("keep one of the two"));
        }
        Ok(first)
    }

    /// Whatever stands under this key, for keys that are known and not supported.
    pub fn take_any(&mut self, key: &'static str) -> Option<Spanned<()>> {
        self.take_all(key).first().map(|node| node.spanned(()))
    }

    /// A string.
    ///
    /// # Errors
    /// Another type, or set twice.
    pub fn string(&mut self, key: &'static str) -> Result<Option<Spanned<String>>, ConfigError> {
        self.take(key)?.map(|n| n.string()).transpose()
    }

    /// A string with something in it. Templates leave an empty one where nothing is set, and SPIRE takes it for that.
    ///
    /// # Errors
    /// As [`Section::string`].
    pub fn filled(&mut self, key: &'static str) -> Result<Option<Spanned<String>>, ConfigError> {
        Ok(self.string(key)?.filter(|text| !text.value.is_empty()))
    }

    /// True or false; the quoted words are taken too, as environment expansion leaves them.
    ///
    /// # Errors
    /// Another type, or set twice.
    pub fn boolean(&mut self, key: &'static str) -> Result<Option<Spanned<bool>>, ConfigError> {
        let Some(node) = self.take(key)? else { return Ok(None) };
        match &node.value {
            Value::Bool(b) => Ok(Some(node.spanned(*b))),
            Value::String(s) if s == "true" || s == "false" => Ok(Some(node.spanned(s == "true"))),
            _ => Err(node.expected("true or false")),
        }
    }

    /// A whole number; the quoted form is taken too, as SPIRE's files usually write ports.
    ///
    /// # Errors
    /// Another type, not whole, or set twice.
    pub fn integer(&mut self, key: &'static str) -> Result<Option<Spanned<i64>>, ConfigError> {
        let Some(node) = self.take(key)? else { return Ok(None) };
        match &node.value {
            Value::Number(text) | Value::String(text) => match text.trim().parse() {
                Ok(number) => Ok(Some(node.spanned(number))),
                Err(_) => Err(ConfigError::new(&node.place, format!("`{}` is `{text}`, expected a whole number", node.path))),
            },
            _ => Err(node.expected("a whole number")),
        }
    }

    /// A port number.
    ///
    /// # Errors
    /// As [`Section::integer`], or outside 0 to 65535.
    pub fn port(&mut self, key: &'static str) -> Result<Option<Spanned<u16>>, ConfigError> {
        let Some(number) = self.integer(key)? else { return Ok(None) };
        match u16::try_from(number.value) {
            Ok(port) => Ok(Some(number.map(|_| port))),
            Err(_) => Err(number.error(format!("{} is not a port, expected 0 to 65535", number.value))),
        }
    }

    /// A length of time as Go writes it: `1h30m`, `45s`, `500ms`.
    ///
    /// # Errors
    /// Another type, not a length of time, or set twice.
    pub fn duration(&mut self, key: &'static str) -> Result<Option<Spanned<Duration>>, ConfigError> {
        let Some(text) = self.filled(key)? else { return Ok(None) };
        match parse_duration(&text.value) {
            Some(duration) => Ok(Some(text.map(|_| duration))),
            None => Err(text.error(format!("`{}` is not a length of time, expected for example `1h30m`, `45s`, `500ms`", text.value))),
        }
    }

    /// A list of strings.
    ///
    /// # Errors
    /// Another type, or set twice.
    pub fn strings(&mut self, key: &'static str) -> Result<Vec<Spanned<String>>, ConfigError> {
        match self.take(key)? {
            None => Ok(Vec::new()),
            Some(Node { value: Value::List(list), .. }) => list.iter().map(Node::string).collect(),
            Some(node) => Err(node.expected("a list of strings in brackets")),
        }
    }

    /// A block. One that is written in several pieces is their sum, as in SPIRE; a key that is in two of them is an error when
    /// it is read.
    ///
    /// # Errors
    /// Not a block.
    pub fn section(&mut self, key: &'static str) -> Result<Option<Section>, ConfigError> {
        let mut all = self.sections(key)?.into_iter();
        let Some(mut first) = all.next() else { return Ok(None) };
        first.items.extend(all.flat_map(|piece| piece.items));
        Ok(Some(first))
    }

    /// Blocks of one name, in file order.
    ///
    /// # Errors
    /// One of them is not a block.
    pub fn sections(&mut self, key: &'static str) -> Result<Vec<Section>, ConfigError> {
        self.take_all(key).into_iter().try_fold(Vec::new(), |mut all, node| {
            all.extend(node.sections()?);
            Ok(all)
        })
    }

    /// Blocks of one name with a label, `Key "label" { … }`, in file order.
    ///
    /// # Errors
    /// One of them is not a block.
    pub fn labelled(&mut self, key: &'static str) -> Result<Vec<(String, Section)>, ConfigError> {
        let mut all = Vec::new();
        for outer in self.sections(key)? {
            for (label, node) in outer.items {
                all.extend(node.sections()?.into_iter().map(|inner| (label.clone(), inner)));
            }
        }
        Ok(all)
    }

    /// Ends the reading: whatever nobody took is unknown.
    ///
    /// # Errors
    /// The first unknown key, with the nearest known one.
    pub fn finish(self) -> Result<(), ConfigError> {
        let Some((key, node)) = self.items.first() else { return Ok(()) };
        let error = ConfigError::new(&node.place, format!("unknown configuration detected: `{}`", node.path));
        Err(match nearest(key, &self.known) {
            Some(known) => error.hint(format!("did you mean `{known}`?")),
            None if self.known.is_empty() => error.hint("nothing can be set here"),
            None => error.hint(format!("known here: {}", self.known.join(", "))),
        })
    }
}

/// Go's duration syntax, without signs.
fn parse_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut total = 0f64;
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let (number, tail) = rest.split_at(digits);
        let unit_length = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_length);
        let seconds = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += number.parse::<f64>().ok()? * seconds;
        rest = tail;
    }
    (!text.is_empty()).then_some(())?;
    Duration::try_from_secs_f64(total).ok()
}

/// The known key within two edits, or a third of its length.
fn nearest(key: &str, known: &[&'static str]) -> Option<&'static str> {
    let key = key.to_ascii_lowercase();
    known.iter().map(|k| (edits(&key, &k.to_ascii_lowercase()), *k)).min().filter(|(edits, k)| *edits <= 2.max(k.len() / 3)).map(|(_, k)| k)
}

/// Levenshtein distance.
fn edits(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        if let Some(first) = row.first_mut() {
            *first = left;
        }
        for (y, above) in b.iter().zip(row.iter_mut().skip(1)) {
            let cost = diagonal + usize::from(x != *y);
            diagonal = *above;
            left = cost.min(left + 1).min(*above + 1);
            *above = left;
        }
    }
    row.last().copied().unwrap_or_default()
}
