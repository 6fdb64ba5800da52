//! Replacing environment variables in the raw text, as SPIRE does with `-expandEnv` (Go's `os.Expand`).

/// Replaces `$NAME` and `${NAME}`; an unset variable becomes nothing, `$$` becomes `$`, any other `$` stays.
pub fn expand(text: &str, lookup: impl Fn(&str) -> Option<String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        let (before, tail) = rest.split_at(at);
        out.push_str(before);
        let tail = tail.get(1..).unwrap_or_default();
        if let Some(after) = tail.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = tail.strip_prefix('{').and_then(|t| t.split_once('}')) {
            out.push_str(&lookup(name).unwrap_or_default());
            rest = after;
        } else {
            let length = tail.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(tail.len());
            let (name, after) = tail.split_at(length);
            if name.is_empty() || name.starts_with(|c: char| c.is_ascii_digit()) {
                out.push('$');
                rest = tail;
            } else {
                out.push_str(&lookup(name).unwrap_or_default());
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}
