//! Distinguished names as text, in the form that Go prints and SPIRE's tools show: last part first, short names.

use x509_parser::x509::X509Name;

use crate::key::hex;

/// Short names, by object identifier.
const SHORT: [(&str, &str); 9] = [
    ("2.5.4.3", "CN"),
    ("2.5.4.5", "SERIALNUMBER"),
    ("2.5.4.6", "C"),
    ("2.5.4.7", "L"),
    ("2.5.4.8", "ST"),
    ("2.5.4.9", "STREET"),
    ("2.5.4.10", "O"),
    ("2.5.4.11", "OU"),
    ("2.5.4.17", "POSTALCODE"),
];

/// The name as text, for people; nothing is decided by it.
pub(super) fn text(name: &X509Name<'_>) -> String {
    let parts: Vec<String> = name
        .iter_rdn()
        .map(|part| {
            let attributes: Vec<String> = part
                .iter()
                .map(|attribute| {
                    let oid = attribute.attr_type().to_id_string();
                    let known = SHORT.iter().find(|(known, _)| *known == oid).map(|(_, short)| *short);
                    match (known, attribute.as_str()) {
                        (Some(short), Ok(value)) => format!("{short}={}", escaped(value)),
                        _ => format!("{oid}=#{}", hex(attribute.attr_value().data)),
                    }
                })
                .collect();
            attributes.join("+")
        })
        .collect();
    parts.into_iter().rev().collect::<Vec<_>>().join(",")
}

fn escaped(value: &str) -> String {
    let last = value.chars().count().saturating_sub(1);
    let mut escaped = String::with_capacity(value.len());
    for (at, c) in value.chars().enumerate() {
        let is_special = matches!(c, ',' | '+' | '"' | '\\' | '<' | '>' | ';');
        if is_special || (c == ' ' && (at == 0 || at == last)) || (c == '#' && at == 0) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use x509_parser::prelude::FromDer as _;

    use super::*;

    #[test]
    fn names_are_written_as_go_writes_them() {
        // C=US, O=`a, b`, and an attribute that has no short name.
        let attribute = |oid: &[u8], value: &[u8]| {
            let of = |tag: u8, content: &[u8]| [&[tag, u8::try_from(content.len()).expect("short")], content].concat();
            of(0x31, &of(0x30, &[of(0x06, oid), of(0x0c, value)].concat()))
        };
        let parts = [attribute(&[0x55, 4, 6], b"US"), attribute(&[0x55, 4, 10], b" a, b#"), attribute(&[0x2a, 3], b"x")].concat();
        let der = [&[0x30, u8::try_from(parts.len()).expect("short")], parts.as_slice()].concat();
        let (_, name) = X509Name::from_der(&der).expect("a name");
        assert_eq!(text(&name), "1.2.3=#78,O=\\ a\\, b#,C=US");
    }
}
