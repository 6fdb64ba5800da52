//! PEM (RFC 7468): text around DER, read leniently (anything between blocks is skipped) and written one way.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Largest PEM text read; a bundle of a thousand roots fits.
pub const PEM_BYTES_MAX: usize = 4 << 20;

/// Why a text could not be read as PEM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PemError {
    /// More than [`PEM_BYTES_MAX`].
    #[error("the text has {0} bytes, more than the {PEM_BYTES_MAX} allowed")]
    TooLong(usize),
    /// A block without its end line.
    #[error("block `{label}` that begins in line {line} has no end")]
    Unterminated {
        /// Label of the block.
        label: String,
        /// Line of its beginning, from 1.
        line: usize,
    },
    /// The body is not base64.
    #[error("block `{label}` that begins in line {line} is not base64")]
    Base64 {
        /// Label of the block.
        label: String,
        /// Line of its beginning, from 1.
        line: usize,
    },
}

/// Every block as (label, DER), in order.
///
/// # Errors
/// Too long, a block without end, or not base64.
pub fn read(text: &str) -> Result<Vec<(String, Vec<u8>)>, PemError> {
    if text.len() > PEM_BYTES_MAX {
        return Err(PemError::TooLong(text.len()));
    }
    let mut blocks = Vec::new();
    let mut open: Option<(String, usize, String)> = None;
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if let Some(label) = line.strip_prefix("-----BEGIN ").and_then(|l| l.strip_suffix("-----")) {
            if let Some((label, line, _)) = open {
                return Err(PemError::Unterminated { label, line });
            }
            open = Some((label.to_owned(), index + 1, String::new()));
        } else if line.starts_with("-----END ") {
            if let Some((label, line, body)) = open.take() {
                let der = STANDARD.decode(&body).map_err(|_| PemError::Base64 { label: label.clone(), line })?;
                blocks.push((label, der));
            }
        } else if let Some((_, _, body)) = &mut open {
            body.push_str(line);
        }
    }
    match open {
        Some((label, line, _)) => Err(PemError::Unterminated { label, line }),
        None => Ok(blocks),
    }
}

/// Bytes in one line of 64 characters.
const LINE_BYTES: usize = 48;

/// One block, lines of 64 characters.
pub fn write(label: &str, der: &[u8]) -> String {
    let lines = der.len().div_ceil(LINE_BYTES);
    // Room for all of it, and no buffer beside it: what is written may be a key, and only the caller can wipe the text.
    let mut text = String::with_capacity(lines * 65 + 2 * label.len() + 32);
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    for line in der.chunks(LINE_BYTES) {
        STANDARD.encode_string(line, &mut text);
        text.push('\n');
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}
