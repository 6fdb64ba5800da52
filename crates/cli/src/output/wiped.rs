//! Output that may hold keys: what it leaves behind as it grows, and in the end, is overwritten.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd as _;

use serde_json::Value;
use zeroize::{Zeroize as _, Zeroizing};

/// Text that grows without leaving copies in memory.
#[derive(Default)]
pub(crate) struct Wiped(Zeroizing<Vec<u8>>);

impl Wiped {
    /// A value as JSON in one line.
    pub(crate) fn json(value: &impl serde::Serialize) -> Self {
        let mut text = Self::default();
        // Writing into memory cannot fail, and neither can keys that are texts.
        let _ = serde_json::to_writer(&mut text, value);
        text
    }

    /// Prints it on standard output, past the buffer of the library, which nobody overwrites.
    pub(crate) fn print(&self) {
        let out = io::stdout();
        let mut locked = out.lock();
        let _ = locked.flush();
        match out.as_fd().try_clone_to_owned() {
            Ok(descriptor) => drop(File::from(descriptor).write_all(&self.0)),
            Err(_) => drop(locked.write_all(&self.0)),
        }
    }

    /// Prints it as a line.
    pub(crate) fn print_line(mut self) {
        let _ = self.write_all(b"\n");
        self.print();
    }
}

impl Write for Wiped {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let needed = self.0.len() + bytes.len();
        if needed > self.0.capacity() {
            // A vector that grows by itself leaves its former place as it is.
            let mut larger = Zeroizing::new(Vec::with_capacity(needed.next_power_of_two()));
            larger.extend_from_slice(&self.0);
            self.0 = larger;
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl AsRef<[u8]> for Wiped {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// A value whose texts are overwritten when it is dropped.
pub(crate) struct WipedValue(pub(crate) Value);

impl Drop for WipedValue {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

/// Values are nested as deep as messages of ours are.
fn wipe(value: &mut Value) {
    match value {
        Value::String(text) => text.zeroize(),
        Value::Array(items) => items.iter_mut().for_each(wipe),
        Value::Object(members) => members.values_mut().for_each(wipe),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_written_in_pieces_is_whole_and_has_room_before_it_grows() {
        let mut text = Wiped::default();
        let mut expected = Vec::new();
        for length in 0..200_u8 {
            let piece = vec![length; usize::from(length)];
            text.write_all(&piece).expect("written");
            expected.extend_from_slice(&piece);
            assert!(text.0.capacity().is_power_of_two() || text.0.is_empty());
        }
        assert_eq!(text.as_ref(), expected);
        assert_eq!(Wiped::json(&json!({"a": ["b\n", 1, null]})).as_ref(), br#"{"a":["b\n",1,null]}"#);
    }

    #[test]
    fn every_text_of_a_value_is_overwritten() {
        let mut value = json!({"a": "secret", "b": [{"c": "secret", "d": 1}, "secret"], "e": null});
        wipe(&mut value);
        assert_eq!(value, json!({"a": "", "b": [{"c": "", "d": 1}, ""], "e": null}));
    }
}
