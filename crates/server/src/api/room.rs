//! Answers that every client can receive.
//!
//! gRPC's clients drop answers above four MiB unless they were told otherwise, SPIRE's agents and tools among them, with an
//! error that says nothing about what to ask instead; what the call did is done by then.

use countersign_transport::limits::MESSAGE_BYTES_MAX;
use prost::Message;
use tonic::Status;

/// Bytes of items in one answer: what clients accept, less what may stand beside them, of which a page token, an agent's
/// SPIFFE ID, is the longest.
const ITEMS_BYTES_MAX: usize = MESSAGE_BYTES_MAX - (4 << 10);

/// Room kept in a batch's answer for each item to come: as much as the refusal of an item for want of room takes.
pub(crate) const REFUSAL_BYTES: usize = 128;

/// What is left in an answer.
#[derive(Debug, Default)]
pub(crate) struct Room {
    taken: usize,
}

impl Room {
    /// Takes room for an item, if there is enough.
    pub(crate) fn takes(&mut self, item: &impl Message) -> bool {
        self.takes_leaving(item, 0)
    }

    /// Takes room for an item, if there is enough for it and for so many bytes more.
    pub(crate) fn takes_leaving(&mut self, item: &impl Message, bytes_left: usize) -> bool {
        let taken = self.taken + field_bytes(item);
        let fits = taken + bytes_left <= ITEMS_BYTES_MAX;
        if fits {
            self.taken = taken;
        }
        fits
    }

    /// Takes room for an item that comes in any case.
    pub(crate) fn take(&mut self, item: &impl Message) {
        self.taken += field_bytes(item);
    }
}

/// Bytes of an item as an element of a list.
fn field_bytes(item: &impl Message) -> usize {
    let bytes = item.encoded_len();
    1 + prost::length_delimiter_len(bytes) + bytes
}

/// An answer that would be too large; what to do instead is for the caller to read.
pub(crate) fn too_large(hint: &str) -> Status {
    Status::resource_exhausted(format!(
        "the answer would be larger than the {} MiB that gRPC clients accept; {hint}",
        MESSAGE_BYTES_MAX >> 20
    ))
}

#[cfg(test)]
mod tests {
    use countersign_wire::entry_api::ListEntriesResponse;
    use countersign_wire::types::Entry;

    use super::*;

    #[test]
    fn items_are_taken_to_the_last_byte_and_counted_as_they_are_sent() {
        let item = |bytes: usize| Entry { hint: "h".repeat(bytes), ..Entry::default() };
        let answer = |bytes: usize| ListEntriesResponse { entries: vec![item(1000), item(bytes)], next_page_token: String::new() };
        let surplus = answer(ITEMS_BYTES_MAX).encoded_len() - ITEMS_BYTES_MAX;
        let exact = ITEMS_BYTES_MAX - surplus;
        assert_eq!(answer(exact).encoded_len(), ITEMS_BYTES_MAX);

        let mut room = Room::default();
        assert!(room.takes(&item(1000)));
        assert!(!room.takes(&item(exact + 1)));
        assert!(!room.takes_leaving(&item(exact), 1));
        assert!(room.takes(&item(exact)));
        assert!(!room.takes(&item(0)));
        // What has to stand beside the items fits too.
        let token = "t".repeat(countersign_identity::id::SPIFFE_ID_BYTES_MAX);
        assert!(ListEntriesResponse { next_page_token: token, ..answer(exact) }.encoded_len() <= MESSAGE_BYTES_MAX);
    }
}
