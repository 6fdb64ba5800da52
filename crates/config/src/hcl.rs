//! HCL to the tree. Only literal values are settings; whatever would need evaluation is refused with a hint.

use std::sync::Arc;

use hcl_edit::Span;
use hcl_edit::expr::{Expression, ObjectKey};
use hcl_edit::structure::{Block, Body, Structure};
use hcl_edit::template::Element;

use crate::error::{ConfigError, Place};
use crate::line_of;
use crate::section::{Node, Section, Value};

pub(crate) fn parse(file: &Arc<str>, text: &str) -> Result<Section, ConfigError> {
    let reader = Reader { file, text };
    let body = hcl_edit::parser::parse_body(text).map_err(|e| reader.syntax(&e))?;
    reader.body(&body, "", Place { file: Arc::clone(file), line: 1 })
}

struct Reader<'a> {
    file: &'a Arc<str>,
    text: &'a str,
}

impl Reader<'_> {
    fn place(&self, spanned: &impl Span) -> Place {
        Place { file: Arc::clone(self.file), line: line_of(self.text, spanned.span().map_or(0, |s| s.start)) }
    }

    fn syntax(&self, error: &hcl_edit::parser::Error) -> ConfigError {
        let line = error.location().line();
        let place = Place { file: Arc::clone(self.file), line };
        let failed = ConfigError::new(&place, format!("not valid HCL: {}", error.message().replace('\n', "; ")));
        let source = self.text.lines().nth(line.saturating_sub(1)).unwrap_or_default().trim();
        if error.message().contains("redefined attribute") {
            let key = source.split('=').next().unwrap_or_default().trim();
            return ConfigError::new(&place, format!("`{key}` is set twice in this block")).hint("keep one of the two");
        }
        if source.starts_with('"') && source.contains('=') {
            failed.hint("HCL 1 allowed quoted keys; write the key without quotes")
        } else if source.ends_with(',') {
            failed.hint("HCL 1 allowed a comma after a setting; leave it out")
        } else if source.contains('{') && source.contains('}') {
            failed.hint("HCL 1 allowed several settings or a nested block in one line; put each on a line of its own")
        } else {
            failed.hint("each setting is `key = value` on a line of its own, each block `name { … }`")
        }
    }

    fn body(&self, body: &Body, path: &str, place: Place) -> Result<Section, ConfigError> {
        let mut section = Section::new(path, place);
        for structure in body {
            match structure {
                Structure::Attribute(attribute) => {
                    let key = attribute.key.as_str();
                    let node = self.value(&attribute.value, &section.path_of(key), self.place(&attribute.key))?;
                    section.push(key, node);
                }
                Structure::Block(block) => {
                    let key = block.ident.as_str();
                    let node = self.block(block, &section.path_of(key), 0)?;
                    section.push(key, node);
                }
            }
        }
        Ok(section)
    }

    /// A block with labels nests one section a label.
    fn block(&self, block: &Block, path: &str, depth: usize) -> Result<Node, ConfigError> {
        let place = self.place(&block.ident);
        let section = match block.labels.get(depth) {
            None => self.body(&block.body, path, place.clone())?,
            Some(label) => {
                let mut outer = Section::new(path, place.clone());
                let inner = self.block(block, &format!("{path} {:?}", label.as_str()), depth + 1)?;
                outer.push(label.as_str(), inner);
                outer
            }
        };
        Ok(Node::new(Value::Section(section), path, place))
    }

    fn value(&self, expression: &Expression, path: &str, place: Place) -> Result<Node, ConfigError> {
        let refuse = |message: String, hint: &str| Err(ConfigError::new(&place, message).hint(hint));
        let value = match expression {
            Expression::Bool(b) => Value::Bool(*b.value()),
            Expression::Number(n) => Value::Number(n.value().to_string()),
            Expression::UnaryOp(op) if op.operator.value().as_str() == "-" => match &op.expr {
                Expression::Number(n) => Value::Number(format!("-{}", n.value())),
                _ => return refuse(format!("`{path}` is an expression"), "write the value itself"),
            },
            Expression::String(s) => Value::String(s.value().to_string()),
            Expression::StringTemplate(t) => Value::String(self.literal(t.iter(), path, &place)?),
            Expression::HeredocTemplate(t) => Value::String(self.literal(t.template.iter(), path, &place)?),
            Expression::Parenthesis(p) => return self.value(p.inner(), path, place),
            Expression::Array(items) => {
                let mut list = Vec::new();
                for (index, item) in items.iter().enumerate() {
                    let at = self.place(item);
                    list.push(self.value(item, &format!("{path}[{index}]"), at)?);
                }
                Value::List(list)
            }
            Expression::Object(members) => {
                let mut section = Section::new(path, place.clone());
                for (key, member) in members {
                    let (name, at) = match key {
                        ObjectKey::Ident(ident) => (ident.as_str().to_owned(), self.place(ident)),
                        ObjectKey::Expression(Expression::String(text)) => (text.value().to_string(), self.place(text)),
                        ObjectKey::Expression(_) => return refuse(format!("`{path}` has a computed key"), "write the key itself"),
                    };
                    let node = self.value(member.expr(), &section.path_of(&name), at)?;
                    section.push(&name, node);
                }
                Value::Section(section)
            }
            Expression::Null(_) => return refuse(format!("`{path}` has no value"), "leave the key out, or give it a value"),
            Expression::Variable(word) => {
                return refuse(format!("`{path}` has the bare word `{}`", word.as_str()), "put the text in double quotes");
            }
            _ => return refuse(format!("`{path}` is an expression"), "write the value itself"),
        };
        Ok(Node::new(value, path, place))
    }

    fn literal<'e>(&self, elements: impl Iterator<Item = &'e Element>, path: &str, place: &Place) -> Result<String, ConfigError> {
        let mut text = String::new();
        for element in elements {
            match element {
                Element::Literal(part) => text.push_str(part.as_str()),
                _ => {
                    return Err(ConfigError::new(place, format!("`{path}` has a `${{…}}` or `%{{…}}` in it"))
                        .hint("start with --expand-env to replace environment variables, or write `$${` for the text itself"));
                }
            }
        }
        Ok(text)
    }
}
