//! How Go programs write and read values, for output that scripts match on and flags that they pass.

use std::io;

use serde_json::Value;

use crate::output::Wiped;

const NANOS: i64 = 1_000_000_000;

/// A text in Go's double quotes (`%q`).
pub(super) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for c in text.chars() {
        match c {
            '"' => out += "\\\"",
            '\\' => out += "\\\\",
            '\n' => out += "\\n",
            '\r' => out += "\\r",
            '\t' => out += "\\t",
            '\u{7}' => out += "\\a",
            '\u{8}' => out += "\\b",
            '\u{b}' => out += "\\v",
            '\u{c}' => out += "\\f",
            c if c.is_ascii_control() => out += &format!("\\x{:02x}", u32::from(c)),
            c if c.is_control() => out += &format!("\\u{:04x}", u32::from(c)),
            c => out.push(c),
        }
    }
    out + "\""
}

/// A time as Go prints one. SPIRE uses the local zone in one place; here it is always UTC, which the text says.
pub(super) fn time(secs: i64) -> String {
    let text = crate::output::time(secs);
    format!("{} +0000 UTC", text.trim_end_matches('Z').replace('T', " "))
}

/// A length of time as Go prints one: `720h0m0s`, `1.5s`, `300ms`.
pub(super) fn duration(nanos: i64) -> String {
    let sign = if nanos < 0 { "-" } else { "" };
    let nanos = nanos.unsigned_abs();
    let second = NANOS.unsigned_abs();
    if nanos == 0 {
        return "0s".to_owned();
    }
    for (unit, size) in [("ns", 1_u64), ("µs", 1_000), ("ms", 1_000_000)] {
        if nanos < size * 1000 {
            return format!("{sign}{}{unit}", decimal(nanos, size));
        }
    }
    let (hours, minutes, rest) = (nanos / (3600 * second), nanos / (60 * second) % 60, nanos % (60 * second));
    let seconds = decimal(rest, second);
    match (hours, minutes) {
        (0, 0) => format!("{sign}{seconds}s"),
        (0, _) => format!("{sign}{minutes}m{seconds}s"),
        _ => format!("{sign}{hours}h{minutes}m{seconds}s"),
    }
}

/// `value / unit` without trailing zeros.
fn decimal(value: u64, unit: u64) -> String {
    let digits = usize::try_from(unit.ilog10()).unwrap_or_default();
    let (whole, part) = (value / unit, value % unit);
    if part == 0 { whole.to_string() } else { format!("{whole}.{part:0digits$}").trim_end_matches('0').to_owned() }
}

/// Reads Go's syntax of a length of time, as nanoseconds.
pub(super) fn parse_duration(text: &str) -> Result<i64, String> {
    let invalid = || format!("time: invalid duration {}", quoted(text));
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if unsigned == "0" {
        return Ok(0);
    }
    if unsigned.is_empty() {
        return Err(invalid());
    }
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    let mut total = 0_i128;
    let mut rest = unsigned;
    while !rest.is_empty() {
        let (number, tail) = rest.split_at(rest.find(|c| !is_number(c)).unwrap_or(rest.len()));
        let (whole, part) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && part.is_empty() || part.contains('.') {
            return Err(invalid());
        }
        let (unit, tail) = tail.split_at(tail.find(is_number).unwrap_or(tail.len()));
        let size: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => i128::from(NANOS),
            "m" => 60 * i128::from(NANOS),
            "h" => 3600 * i128::from(NANOS),
            "" => return Err(format!("time: missing unit in duration {}", quoted(text))),
            other => return Err(format!("time: unknown unit {} in duration {}", quoted(other), quoted(text))),
        };
        // More digits than a nanosecond of an hour has change nothing.
        let part: String = part.chars().take(15).collect();
        let scale = 10_i128.pow(u32::try_from(part.len()).unwrap_or_default());
        let number = |digits: &str| if digits.is_empty() { Ok(0) } else { digits.parse::<i128>().map_err(|_| invalid()) };
        let amount = number(whole)?.checked_mul(size).ok_or_else(invalid)? + number(&part)? * size / scale;
        total = total.checked_add(amount).ok_or_else(invalid)?;
        rest = tail;
    }
    let nanos = i64::try_from(total).map_err(|_| invalid())?;
    Ok(if text.starts_with('-') { -nanos } else { nanos })
}

/// Reads a whole number as Go's flags do: decimal, `0x…`, `0o…` or `0…`, `0b…`, with underscores between digits.
pub(super) fn parse_int(text: &str) -> Result<i64, &'static str> {
    const SYNTAX: &str = "parse error";
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let lower = unsigned.to_ascii_lowercase();
    let (digits, radix) = if let Some(digits) = lower.strip_prefix("0x") {
        (digits, 16)
    } else if let Some(digits) = lower.strip_prefix("0b") {
        (digits, 2)
    } else if let Some(digits) = lower.strip_prefix("0o") {
        (digits, 8)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (lower.trim_start_matches('0'), 8)
    } else {
        (lower.as_str(), 10)
    };
    let octal_zero = radix == 8 && digits.is_empty();
    let prefixed = radix != 10;
    let misplaced = digits.ends_with('_') || digits.contains("__") || (digits.starts_with('_') && !prefixed);
    let plain: String = digits.chars().filter(|c| *c != '_').collect();
    if misplaced || !octal_zero && (plain.is_empty() || !plain.chars().all(|c| c.is_digit(radix))) {
        return Err(SYNTAX);
    }
    let value = if octal_zero { 0 } else { i128::from_str_radix(&plain, radix).map_err(|_| "value out of range")? };
    i64::try_from(if text.starts_with('-') { -value } else { value }).map_err(|_| "value out of range")
}

/// Reads true or false in the forms that Go takes.
pub(super) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// JSON as Go's encoder writes it: one line, and nothing in it that HTML would take for markup.
pub(super) fn json(value: &impl serde::Serialize) -> Wiped {
    let mut text = Wiped::default();
    // Writing into memory cannot fail, and neither can keys that are texts.
    let _ = value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, NoMarkup));
    text
}

/// Writes what HTML would take for markup, and what JavaScript would take for the end of a line, by its number.
struct NoMarkup;

impl serde_json::ser::Formatter for NoMarkup {
    fn write_string_fragment<W: ?Sized + io::Write>(&mut self, writer: &mut W, fragment: &str) -> io::Result<()> {
        let is_escaped = |c: char| matches!(c, '<' | '>' | '&' | '\u{2028}' | '\u{2029}');
        for piece in fragment.split_inclusive(is_escaped) {
            match piece.chars().next_back().filter(|last| is_escaped(*last)) {
                Some(last) => {
                    writer.write_all(piece.strip_suffix(last).unwrap_or(piece).as_bytes())?;
                    write!(writer, "\\u{:04x}", u32::from(last))?;
                }
                None => writer.write_all(piece.as_bytes())?,
            }
        }
        Ok(())
    }
}

/// A structure in the one-line form of Go's protobuf library, with a space after each comma of an object.
pub(super) fn spaced_json(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let members: Vec<String> = members.iter().map(|(k, v)| format!("{}:{}", Value::from(k.as_str()), spaced_json(v))).collect();
            format!("{{{}}}", members.join(", "))
        }
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(spaced_json).collect();
            format!("[{}]", items.join(", "))
        }
        other => other.to_string(),
    }
}

/// What the system said, in Go's words: lower case and without the number.
pub(super) fn system_error(text: &str) -> String {
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut characters = text.chars();
    characters.next().map(|first| first.to_lowercase().chain(characters).collect()).unwrap_or_default()
}

/// The name of a status code.
pub(super) fn code(number: i32) -> String {
    match tonic::Code::from_i32(number) {
        tonic::Code::Ok => "OK".to_owned(),
        tonic::Code::Cancelled => "Canceled".to_owned(),
        tonic::Code::Unknown if number != 2 => format!("Code({number})"),
        other => format!("{other:?}"),
    }
}

/// What a call was refused with.
pub(super) fn status(status: &tonic::Status) -> String {
    format!("rpc error: code = {} desc = {}", code(status.code().into()), status.message())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn lengths_of_time_are_written_and_read_as_in_go() {
        for text in ["0s", "1ns", "1.5µs", "4.907979ms", "1.5s", "1m0s", "1m30.5s", "720h0m0s", "-2h0m0.000000001s"] {
            assert_eq!(duration(parse_duration(text).unwrap()), text);
        }
        assert_eq!(parse_duration("1h1h").unwrap(), 7200 * NANOS);
        assert_eq!(parse_duration(".5s").unwrap(), NANOS / 2);
        let refused = |text| parse_duration(text).unwrap_err();
        assert_eq!(refused("abc"), "time: invalid duration \"abc\"");
        assert_eq!(refused("5"), "time: missing unit in duration \"5\"");
        assert_eq!(refused("5x"), "time: unknown unit \"x\" in duration \"5x\"");
        assert_eq!(refused("9999999999h"), "time: invalid duration \"9999999999h\"");
        assert_eq!(refused(""), "time: invalid duration \"\"");
    }

    #[test]
    fn whole_numbers_are_read_as_in_go() {
        let good = [("0", 0), ("-5", -5), ("+7", 7), ("0x1F", 31), ("017", 15), ("0b11", 3), ("0o17", 15), ("1_000", 1000), ("00", 0)];
        for (text, number) in good {
            assert_eq!(parse_int(text), Ok(number), "{text}");
        }
        for text in ["", "abc", "1.5", "0x", "08", "1__0", "_1", "1_", "--5", " 1"] {
            assert_eq!(parse_int(text), Err("parse error"), "{text}");
        }
        assert_eq!(parse_int("99999999999999999999"), Err("value out of range"));
    }

    #[test]
    fn texts_are_quoted_as_in_go_and_cannot_end_the_line() {
        assert_eq!(quoted("a\"b\\c\n\u{7}\u{1b}é"), r#""a\"b\\c\n\a\x1bé""#);
        let value = serde_json::json!({"b": "<h>\"&\u{2028}\u{2029}\u{e9} ", "a": 1, "<": []});
        let expected = r#"{"\u003c":[],"a":1,"b":"\u003ch\u003e\"\u0026\u2028\u2029é "}"#;
        assert_eq!(String::from_utf8_lossy(json(&value).as_ref()), expected);
        assert_eq!(spaced_json(&serde_json::json!({"aud": ["a", "b"], "exp": 1})), r#"{"aud":["a", "b"], "exp":1}"#);
    }
}
