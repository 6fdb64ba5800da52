//! What a configuration says, setting by setting, as hashes: enough to tell what another one changes, and no secret in it.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::section::{Node, Section, Value};

/// The settings of a configuration by their full names. Where they stand in the file does not count.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fingerprint(BTreeMap<String, Setting>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Setting {
    /// The name as it is written in the file.
    shown: String,
    hash: u64,
}

/// What another configuration changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// Settings that a running process can take over.
    pub live: Vec<String>,
    /// Settings that wait for a restart.
    pub restart: Vec<String>,
}

impl Fingerprint {
    /// Adds all settings of a block, whose own name is `below`; empty for the whole file.
    pub fn add(&mut self, below: &str, section: &Section) {
        for (key, node) in section.items() {
            let name = if below.is_empty() { key.to_owned() } else { format!("{below}.{key}") };
            self.add_node(name, node);
        }
    }

    fn add_node(&mut self, name: String, node: &Node) {
        match node.value() {
            Value::Section(section) => self.add(&name, section),
            // How JSON writes blocks of one name.
            Value::List(list) if list.iter().any(|node| matches!(node.value(), Value::Section(_))) => {
                for (index, node) in list.iter().enumerate() {
                    self.add_node(format!("{name}[{index}]"), node);
                }
            }
            value => {
                let mut hasher = DefaultHasher::new();
                hash(value, &mut hasher);
                self.0.insert(name.to_ascii_lowercase(), Setting { shown: name, hash: hasher.finish() });
            }
        }
    }

    /// What `newer` changes. A setting is live if its name begins with one of `live`.
    pub fn changes(&self, newer: &Self, live: &[&str]) -> Changes {
        let mut changes = Changes::default();
        for name in self.0.keys().chain(newer.0.keys()).collect::<BTreeSet<_>>() {
            let (old, new) = (self.0.get(name), newer.0.get(name));
            if old.map(|s| s.hash) == new.map(|s| s.hash) {
                continue;
            }
            let shown = new.or(old).map_or_else(String::new, |s| s.shown.clone());
            if live.iter().any(|prefix| is_at(name, &prefix.to_ascii_lowercase())) {
                changes.live.push(shown);
            } else {
                changes.restart.push(shown);
            }
        }
        changes
    }

    /// Takes over the settings of `newer` that are live; the others stay different until the restart.
    pub fn take_over(&mut self, newer: &Self, changes: &Changes) {
        for name in changes.live.iter().map(|shown| shown.to_ascii_lowercase()) {
            match newer.0.get(&name) {
                Some(setting) => self.0.insert(name, setting.clone()),
                None => self.0.remove(&name),
            };
        }
    }
}

impl Changes {
    /// Whether nothing is different.
    pub fn is_empty(&self) -> bool {
        self.live.is_empty() && self.restart.is_empty()
    }

    /// Whether a block, or a setting in it, is among the live ones.
    pub fn has(&self, name: &str) -> bool {
        let name = name.to_ascii_lowercase();
        self.live.iter().any(|changed| is_at(&changed.to_ascii_lowercase(), &name))
    }
}

/// Whether `name` is the setting or block `prefix`, or in it.
fn is_at(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', ' ', '[']))
}

/// A number and the same number in quotes are one setting, as they are for who reads them.
fn hash(value: &Value, hasher: &mut DefaultHasher) {
    match value {
        Value::String(text) | Value::Number(text) => text.hash(hasher),
        Value::Bool(truth) => truth.to_string().hash(hasher),
        Value::List(list) => {
            list.len().hash(hasher);
            list.iter().for_each(|node| hash(node.value(), hasher));
        }
        Value::Section(_) => {}
    }
}
