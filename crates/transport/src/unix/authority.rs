//! Makes the `:authority` that gRPC clients send on Unix sockets legal.
//!
//! The C core (Python, C++, Ruby, PHP) sends the percent-encoded socket path, `tmp%2Fapi.sock`, and grpc-java the path as
//! it is, `/tmp/api.sock`. Neither is an authority by RFC 3986, and our HTTP/2 library resets such streams. The name means
//! nothing to us, so whatever cannot be in the name of a host is replaced by `-` as the bytes come in. The length stays
//! the same, so that both ends' header tables keep agreeing.
//!
//! Only as much of HTTP/2 (RFC 9113) and HPACK (RFC 7541) is followed as is needed to find that one text, byte by byte, in
//! place, whatever pieces the bytes come in. Huffman-coded texts are left alone: neither of the two sends them.

const PREFACE_BYTES: usize = 24;
const FRAME_HEADER_BYTES: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
const NAME: &[u8] = b":authority";
/// Index of `:authority` in HPACK's static table.
const STATIC_INDEX: u64 = 1;

/// Follows what one client sends.
#[derive(Debug)]
pub struct Authority {
    at: Place,
    field: Field,
}

/// Where in the stream of frames we are.
#[derive(Debug)]
enum Place {
    Preface(usize),
    FrameHeader {
        bytes: [u8; FRAME_HEADER_BYTES],
        filled: usize,
    },
    /// A payload that does not matter.
    Skip(usize),
    /// The length of the padding of a HEADERS frame, and what comes before the fields.
    PadLength {
        left: usize,
        flags: u8,
    },
    Fields {
        left: usize,
        before: usize,
        padding: usize,
        last: bool,
    },
}

/// Where in a block of header fields we are; it may go on in the next frame.
#[derive(Debug, Clone, Copy)]
enum Field {
    Start,
    /// A number that goes on; what comes after it.
    Number {
        value: u64,
        shift: u32,
        then: Then,
    },
    Length {
        is_name: bool,
        is_authority: bool,
    },
    Text {
        left: u64,
        is_name: bool,
        is_authority: bool,
        huffman: bool,
        matched: usize,
    },
}

#[derive(Debug, Clone, Copy)]
enum Then {
    Next,
    NameIndex,
    TextLength { is_name: bool, is_authority: bool, huffman: bool },
}

impl Default for Authority {
    fn default() -> Self {
        Self { at: Place::Preface(0), field: Field::Start }
    }
}

impl Authority {
    /// Looks at the next bytes and mends them where needed.
    pub fn pass(&mut self, bytes: &mut [u8]) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let used = self.step(rest).clamp(1, rest.len());
            rest = rest.get_mut(used..).unwrap_or_default();
        }
    }

    /// Takes at least one byte and says how many.
    fn step(&mut self, bytes: &mut [u8]) -> usize {
        match &mut self.at {
            Place::Preface(seen) => {
                let used = bytes.len().min(PREFACE_BYTES - *seen);
                *seen += used;
                if *seen == PREFACE_BYTES {
                    self.at = next_frame();
                }
                used
            }
            Place::FrameHeader { bytes: header, filled } => {
                let (Some(slot), Some(byte)) = (header.get_mut(*filled), bytes.first()) else { return 1 };
                *slot = *byte;
                *filled += 1;
                if *filled == FRAME_HEADER_BYTES {
                    let header = *header;
                    self.begin(header);
                }
                1
            }
            Place::Skip(left) => {
                let used = bytes.len().min(*left);
                *left -= used;
                if *left == 0 {
                    self.at = next_frame();
                }
                used
            }
            Place::PadLength { left, flags } => {
                let (left, flags) = (left.saturating_sub(1), *flags);
                let padding = bytes.first().map_or(0, |b| usize::from(*b));
                self.fields(left, flags, padding);
                1
            }
            Place::Fields { left, before, padding, last } => {
                if *before > 0 {
                    let used = bytes.len().min(*before);
                    *before -= used;
                    *left = left.saturating_sub(used);
                    self.end_of_fields();
                    return used;
                }
                *left = left.saturating_sub(1);
                let in_padding = *left < *padding;
                let ends = *left <= *padding && *last;
                if !in_padding && let Some(byte) = bytes.first_mut() {
                    self.field = self.field.byte(byte);
                }
                if ends {
                    self.field = Field::Start;
                }
                self.end_of_fields();
                1
            }
        }
    }

    fn end_of_fields(&mut self) {
        if let Place::Fields { left: 0, .. } = self.at {
            self.at = next_frame();
        }
    }

    /// A frame begins.
    fn begin(&mut self, header: [u8; FRAME_HEADER_BYTES]) {
        let [a, b, c, kind, flags, ..] = header;
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        self.at = match kind {
            _ if length == 0 => next_frame(),
            HEADERS if flags & PADDED != 0 => Place::PadLength { left: length, flags },
            HEADERS => return self.fields(length, flags, 0),
            CONTINUATION => return self.fields(length, flags & END_HEADERS, 0),
            _ => Place::Skip(length),
        };
    }

    fn fields(&mut self, left: usize, flags: u8, padding: usize) {
        let before = if flags & PRIORITY != 0 { 5.min(left) } else { 0 };
        self.at = Place::Fields { left, before, padding, last: flags & END_HEADERS != 0 };
        self.end_of_fields();
    }
}

fn next_frame() -> Place {
    Place::FrameHeader { bytes: [0; FRAME_HEADER_BYTES], filled: 0 }
}

impl Field {
    /// The state after one more byte, which is mended if it has to be.
    fn byte(self, byte: &mut u8) -> Self {
        match self {
            Self::Start => match *byte {
                b if b & 0x80 != 0 => number(b, 0x7f, Then::Next),
                b if b & 0x40 != 0 => number(b, 0x3f, Then::NameIndex),
                b if b & 0x20 != 0 => number(b, 0x1f, Then::Next),
                b => number(b, 0x0f, Then::NameIndex),
            },
            Self::Number { value, shift, then } => {
                let value = value.saturating_add(u64::from(*byte & 0x7f).checked_shl(shift).unwrap_or(u64::MAX));
                if *byte & 0x80 != 0 { Self::Number { value, shift: (shift + 7).min(63), then } } else { then.with(value) }
            }
            Self::Length { is_name, is_authority } => {
                number(*byte, 0x7f, Then::TextLength { is_name, is_authority, huffman: *byte & 0x80 != 0 })
            }
            Self::Text { left, is_name, is_authority, huffman, matched } => {
                if !is_name && is_authority && !huffman && !is_of_a_host(*byte) {
                    *byte = b'-';
                }
                let matched = if is_name && !huffman && NAME.get(matched) == Some(byte) { matched + 1 } else { matched };
                let is_authority = if is_name { matched == NAME.len() } else { is_authority };
                text(left - 1, is_name, is_authority, huffman, matched)
            }
        }
    }
}

impl Then {
    fn with(self, value: u64) -> Field {
        match self {
            Self::Next => Field::Start,
            // 0: the name follows as a text.
            Self::NameIndex => Field::Length { is_name: value == 0, is_authority: value == STATIC_INDEX },
            Self::TextLength { is_name, is_authority, huffman } => text(value, is_name, is_authority, huffman, 0),
        }
    }
}

/// Names of hosts with a port, and no more than that; a path may hold any byte at all.
fn is_of_a_host(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':')
}

/// A number with this mask for its first byte.
fn number(byte: u8, mask: u8, then: Then) -> Field {
    let value = u64::from(byte & mask);
    if byte & mask == mask { Field::Number { value, shift: 0, then } } else { then.with(value) }
}

/// So much of a text is left; after a name comes its value, after a value the next field.
fn text(left: u64, is_name: bool, is_authority: bool, huffman: bool, matched: usize) -> Field {
    match (left, is_name) {
        (0, true) => Field::Length { is_name: false, is_authority },
        (0, false) => Field::Start,
        _ => Field::Text { left, is_name, is_authority, huffman, matched },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What gRPC's C core really sends first, but for the socket's name.
    fn client(authority: &[u8]) -> Vec<u8> {
        let mut fields = b"@\x05:path\x02/a".to_vec();
        fields.extend_from_slice(b"@\n:authority");
        fields.push(u8::try_from(authority.len()).expect("short"));
        fields.extend_from_slice(authority);
        // The static name with the same value, without indexing; an ordinary header whose `%` must stay; an indexed field.
        fields.push(0x01);
        fields.push(u8::try_from(authority.len()).expect("short"));
        fields.extend_from_slice(authority);
        fields.extend_from_slice(b"\x00\x01x\x03a%b\x83");
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend_from_slice(&[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0]);
        let (first, second) = fields.split_at(14);
        // HEADERS with padding and priority, split in the middle of a text.
        let length = u8::try_from(first.len() + 1 + 5 + 2).expect("short");
        bytes.extend_from_slice(&[0, 0, length, HEADERS, PADDED | PRIORITY, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0]);
        bytes.extend_from_slice(first);
        bytes.extend_from_slice(b"%%");
        bytes.extend_from_slice(&[0, 0, u8::try_from(second.len()).expect("short"), CONTINUATION, END_HEADERS, 0, 0, 0, 1]);
        bytes.extend_from_slice(second);
        bytes.extend_from_slice(&[0, 0, 3, 0, 1, 0, 0, 0, 1, b'%', b'%', b'%']);
        bytes
    }

    #[test]
    fn a_path_in_the_authority_becomes_a_host_and_nothing_else_changes_whatever_the_pieces() {
        let c_core = (client(b"tmp%2Fx%2Fa.sock"), client(b"tmp-2Fx-2Fa.sock"));
        let java = (client("/tmp/a b/\u{e9}@[1].sock".as_bytes()), client(b"-tmp-a-b-----1-.sock"));
        for (sent, wanted) in [c_core, java] {
            for piece in 1..sent.len() {
                let mut bytes = sent.clone();
                let mut authority = Authority::default();
                for part in bytes.chunks_mut(piece) {
                    authority.pass(part);
                }
                assert_eq!(bytes, wanted, "in pieces of {piece}");
            }
        }
    }

    #[test]
    fn an_ordinary_client_is_left_alone() {
        let mut bytes = client(b"localhost:8081");
        Authority::default().pass(&mut bytes);
        assert_eq!(bytes, client(b"localhost:8081"));
    }

    #[test]
    fn bytes_that_are_no_http_do_no_harm() {
        let mut seed = 1u64;
        for _ in 0..2000 {
            let mut bytes: Vec<u8> = (0..200)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    u8::try_from(seed >> 56).expect("a byte")
                })
                .collect();
            Authority::default().pass(&mut bytes);
            let mut framed = client(b"a%b");
            framed.extend_from_slice(&bytes);
            Authority::default().pass(&mut framed);
        }
    }
}
