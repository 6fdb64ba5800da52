//! What an agent keeps on disk: its own SVID in SPIRE's `agent-data.json`, and what it follows in a file of ours.
//!
//! Files are 0600 and replaced atomically. Workload keys and SVIDs are in neither.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use countersign_identity::{Timestamp, pem};
use countersign_plugins::keys::sha256;
use countersign_transport::files::replace;
use countersign_wire::node::FollowResponse;
use prost::Message as _;
use serde_json::{Value, json};

/// Largest state file read; 10,000 entries with their bundles have a few megabytes.
const FILE_BYTES_MAX: u64 = 256 << 20;
const MAGIC: &[u8] = b"countersign-agent-state 1\n";

/// A file of the agent cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("failed to open storage: `{path}`: {reason}")]
pub struct StateError {
    /// Which.
    pub path: String,
    /// Why.
    pub reason: String,
}

/// The agent's own SVID and the bundle it was verified with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct AgentData {
    /// Chain, leaf first, DER; empty for none.
    pub(crate) svid: Vec<Vec<u8>>,
    /// Roots of the own trust domain, DER; empty for none.
    pub(crate) bundle: Vec<Vec<u8>>,
    pub(crate) reattestable: bool,
    /// SPIRE's bootstrap state, passed through as it is.
    rest: serde_json::Map<String, Value>,
}

/// The source of the bundle has been read so often since then, without a server that proves itself by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Attempts {
    pub(crate) number: u64,
    pub(crate) started: Timestamp,
}

/// What Go writes for no time.
const NO_TIME: &str = "0001-01-01T00:00:00Z";
/// SPIRE's number for an agent that has known its server before.
const USE_REBOOTSTRAP: u64 = 2;
const USE_BOOTSTRAP: u64 = 1;

impl AgentData {
    /// The attempts under way; nothing if the server was trusted last.
    pub(crate) fn attempts(&self) -> Option<Attempts> {
        let started = self.rest.get("bootstrap_start_time")?.as_str().filter(|text| *text != NO_TIME)?;
        let number = self.rest.get("connection_attempts").and_then(Value::as_u64).unwrap_or_default();
        Some(Attempts { number, started: Timestamp::parse_rfc3339(started)? })
    }

    /// Whether the agent has known its server before.
    pub(crate) fn has_known_server(&self) -> bool {
        !self.bundle.is_empty() || self.rest.get("bootstrap_use").and_then(Value::as_u64) == Some(USE_REBOOTSTRAP)
    }

    /// Notes the attempts under way, or that the server is trusted.
    pub(crate) fn note_attempts(&mut self, attempts: Option<Attempts>) {
        let knows = attempts.is_none() || self.has_known_server();
        let started = attempts.map_or_else(|| NO_TIME.to_owned(), |a| a.started.to_string());
        self.rest.insert("bootstrap_use".to_owned(), (if knows { USE_REBOOTSTRAP } else { USE_BOOTSTRAP }).into());
        self.rest.insert("bootstrap_start_time".to_owned(), started.into());
        self.rest.insert("connection_attempts".to_owned(), attempts.map_or(0, |a| a.number).into());
    }
}

/// The files of one agent.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    directory: PathBuf,
}

impl Files {
    /// Makes the directory if needed.
    pub(crate) fn new(directory: &Path) -> Result<Self, StateError> {
        std::fs::create_dir_all(directory).map_err(|e| StateError { path: directory.display().to_string(), reason: e.to_string() })?;
        Ok(Self { directory: directory.to_owned() })
    }

    fn agent_data_path(&self) -> PathBuf {
        self.directory.join("agent-data.json")
    }

    /// The files belong to another trust domain.
    pub(crate) fn foreign(&self, found: &str, configured: &str) -> StateError {
        StateError {
            path: self.agent_data_path().display().to_string(),
            reason: format!("it belongs to trust domain `{found}`, the configuration says `{configured}`; choose another data_dir"),
        }
    }

    fn follow_path(&self) -> PathBuf {
        self.directory.join("countersign-follow.state")
    }

    /// The agent's SVID; nothing if there is no file. A file that cannot be read is an error, not a new start.
    pub(crate) fn agent_data(&self) -> Result<AgentData, StateError> {
        let path = self.agent_data_path();
        let failed = |reason: String| StateError { path: path.display().to_string(), reason };
        let text = match read_limited(&path) {
            Ok(Some(bytes)) => String::from_utf8(bytes).map_err(|_| failed("it is not text".to_owned()))?,
            Ok(None) => return Ok(AgentData::default()),
            Err(e) => return Err(failed(e)),
        };
        parse_agent_data(&text).map_err(failed)
    }

    /// Keeps the agent's SVID; returns once it is on disk.
    pub(crate) fn agent_data_put(&self, data: &AgentData) -> Result<(), StateError> {
        let path = self.agent_data_path();
        replace(&path, render_agent_data(data).as_bytes(), 0o600)
            .map_err(|e| StateError { path: path.display().to_string(), reason: e.to_string() })
    }

    /// What was followed with the SVID of this serial number. Anything else there is dropped: a file of another life, or
    /// one that was cut off, is worth nothing, because everything can be fetched again.
    pub(crate) fn follow(&self, serial: &str) -> Option<FollowResponse> {
        let bytes = read_limited(&self.follow_path()).ok()??;
        let message = bound_to(open_follow(&bytes)?, serial)?;
        FollowResponse::decode(message).ok()
    }

    /// Keeps what is followed.
    pub(crate) fn follow_put(&self, serial: &str, state: &FollowResponse) -> Result<(), StateError> {
        self.write_follow(serial, &state.encode_to_vec())
    }

    /// Binds what was followed with one SVID to its successor as well, so that it is usable with whichever of the two a
    /// crash leaves on disk. Without anything that was followed there is nothing to do.
    pub(crate) fn follow_rebind(&self, from: &str, to: &str) -> Result<(), StateError> {
        let failed = |reason| StateError { path: self.follow_path().display().to_string(), reason };
        let Some(bytes) = read_limited(&self.follow_path()).map_err(failed)? else { return Ok(()) };
        match open_follow(&bytes).and_then(|body| bound_to(body, from)) {
            Some(message) => self.write_follow(&format!("{from} {to}"), message),
            None => Ok(()),
        }
    }

    /// `serials` are separated by a space.
    fn write_follow(&self, serials: &str, message: &[u8]) -> Result<(), StateError> {
        let mut body = format!("{serials}\n").into_bytes();
        body.extend_from_slice(message);
        let mut bytes = MAGIC.to_vec();
        bytes.extend_from_slice(&sha256(&body));
        bytes.extend_from_slice(&body);
        let path = self.follow_path();
        replace(&path, &bytes, 0o600).map_err(|e| StateError { path: path.display().to_string(), reason: e.to_string() })
    }
}

/// The part of a follow file behind its digest; nothing if it is not one, or damaged.
fn open_follow(bytes: &[u8]) -> Option<&[u8]> {
    let rest = bytes.strip_prefix(MAGIC)?;
    let (digest, body) = rest.split_first_chunk::<32>()?;
    if sha256(body) != *digest {
        tracing::warn!("The state file is damaged, starting over");
        return None;
    }
    Some(body)
}

/// The message in it, if it is bound to the SVID of this serial number.
fn bound_to<'a>(body: &'a [u8], serial: &str) -> Option<&'a [u8]> {
    let end = body.iter().position(|b| *b == b'\n')?;
    let (serials, message) = body.split_at(end);
    serials.split(|b| *b == b' ').any(|s| s == serial.as_bytes()).then(|| message.get(1..))?
}

fn parse_agent_data(text: &str) -> Result<AgentData, String> {
    let value: Value = serde_json::from_str(text).map_err(|e| format!("it is not JSON: {e}"))?;
    let Value::Object(mut members) = value else { return Err("it is not a JSON object".to_owned()) };
    let mut chain = |name: &str| match members.remove(name) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(items)) => items
            .iter()
            .map(|item| {
                let text = item.as_str().and_then(|t| STANDARD.decode(t).ok()).and_then(|b| String::from_utf8(b).ok());
                let text = text.ok_or_else(|| format!("`{name}` has an item that is not base64 of PEM"))?;
                match pem::read(&text).map_err(|e| e.to_string())?.into_iter().next() {
                    Some((_, der)) => Ok(der),
                    None => Err(format!("`{name}` has an item without a PEM block")),
                }
            })
            .collect(),
        Some(_) => Err(format!("`{name}` is not a list")),
    };
    let (svid, bundle) = (chain("svid")?, chain("bundle")?);
    let reattestable = members.remove("reattestable").and_then(|v| v.as_bool()).unwrap_or(false);
    Ok(AgentData { svid, bundle, reattestable, rest: members })
}

/// SPIRE's form, keys in its order.
fn render_agent_data(data: &AgentData) -> String {
    let chain = |ders: &[Vec<u8>]| {
        if ders.is_empty() {
            return Value::Null;
        }
        ders.iter().map(|der| Value::from(STANDARD.encode(pem::write("CERTIFICATE", der)))).collect()
    };
    let rest = |name: &str, default: Value| data.rest.get(name).cloned().unwrap_or(default);
    format!(
        "{{\"svid\":{},\"bundle\":{},\"reattestable\":{},\"bootstrap_use\":{},\"bootstrap_start_time\":{},\"connection_attempts\":{}}}",
        chain(&data.svid),
        chain(&data.bundle),
        data.reattestable,
        rest("bootstrap_use", json!(0)),
        rest("bootstrap_start_time", json!("0001-01-01T00:00:00Z")),
        rest("connection_attempts", json!(0)),
    )
}

fn read_limited(path: &Path) -> Result<Option<Vec<u8>>, String> {
    match std::fs::metadata(path) {
        Ok(m) if m.len() > FILE_BYTES_MAX => Err(format!("it has {} bytes, more than {FILE_BYTES_MAX}", m.len())),
        Ok(_) => std::fs::read(path).map(Some).map_err(|e| e.to_string()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn agent_data_is_written_in_spires_form_and_read_back() {
        let directory = tempfile::tempdir().expect("a directory");
        let files = Files::new(directory.path()).expect("made");
        assert_eq!(files.agent_data().expect("no file is no error"), AgentData::default());
        let data = AgentData { svid: vec![vec![1, 2, 3]], bundle: vec![vec![4], vec![5]], reattestable: true, ..AgentData::default() };
        files.agent_data_put(&data).expect("kept");
        let text = std::fs::read_to_string(directory.path().join("agent-data.json")).expect("there");
        assert!(text.starts_with("{\"svid\":[\"LS0tLS1CRUdJTi"), "{text}");
        assert!(
            text.ends_with(",\"bootstrap_use\":0,\"bootstrap_start_time\":\"0001-01-01T00:00:00Z\",\"connection_attempts\":0}"),
            "{text}"
        );
        let mut read = files.agent_data().expect("read");
        read.rest.clear();
        assert_eq!(read, data);
    }

    #[test]
    fn attempts_to_reach_the_server_are_kept_in_spires_form() {
        let (directory, files) = place();
        let text = || std::fs::read_to_string(directory.path().join("agent-data.json")).expect("there");
        let attempts = Attempts { number: 3, started: Timestamp::from_secs(1_800_000_000) };
        let mut data = AgentData::default();
        data.note_attempts(Some(attempts));
        files.agent_data_put(&data).expect("kept");
        let first = "\"bootstrap_use\":1,\"bootstrap_start_time\":\"2027-01-15T08:00:00Z\",\"connection_attempts\":3}";
        assert!(text().ends_with(first), "{}", text());
        let mut data = files.agent_data().expect("read");
        assert_eq!((data.attempts(), data.has_known_server()), (Some(attempts), false));
        data.note_attempts(None);
        files.agent_data_put(&data).expect("kept");
        let trusted = "\"bootstrap_use\":2,\"bootstrap_start_time\":\"0001-01-01T00:00:00Z\",\"connection_attempts\":0}";
        assert!(text().ends_with(trusted), "{}", text());
        let data = files.agent_data().expect("read");
        assert_eq!((data.attempts(), data.has_known_server()), (None, true));
        // As Go writes it.
        std::fs::write(directory.path().join("agent-data.json"), text().replace("0001-01-01T00:00:00Z", "2027-01-15T10:00:00.5+02:00"))
            .expect("written");
        let begun = files.agent_data().expect("read").attempts().expect("under way");
        assert_eq!(begun.started, Timestamp::from_millis(1_800_000_000_500));
    }

    #[test]
    fn damaged_agent_data_is_an_error_and_not_a_new_start() {
        let directory = tempfile::tempdir().expect("a directory");
        let files = Files::new(directory.path()).expect("made");
        for text in ["", "{", "[]", "{\"svid\":[\"!\"]}", "{\"svid\":5}"] {
            std::fs::write(directory.path().join("agent-data.json"), text).expect("written");
            assert!(files.agent_data().is_err(), "{text}");
        }
    }

    #[test]
    fn followed_state_is_bound_to_its_serial_and_dropped_when_damaged() {
        let directory = tempfile::tempdir().expect("a directory");
        let files = Files::new(directory.path()).expect("made");
        let state = FollowResponse { removed_entries: vec!["a".to_owned()], ..FollowResponse::default() };
        files.follow_put("17", &state).expect("kept");
        assert_eq!(files.follow("17"), Some(state.clone()));
        assert_eq!((files.follow("18"), files.follow("1"), files.follow("")), (None, None, None));
        files.follow_rebind("18", "19").expect("nothing to do");
        assert_eq!(files.follow("19"), None, "what is bound to another is not taken over");
        files.follow_rebind("17", "18").expect("bound");
        assert_eq!((files.follow("17"), files.follow("18")), (Some(state.clone()), Some(state)));
        let path = directory.path().join("countersign-follow.state");
        let mut bytes = std::fs::read(&path).expect("there");
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        std::fs::write(&path, &bytes).expect("written");
        assert_eq!(files.follow("17"), None);
        for length in 0..bytes.len() {
            std::fs::write(&path, &bytes[..length]).expect("written");
            assert_eq!(files.follow("17"), None, "cut at {length}");
        }
    }

    /// A place for files, used by one case after the other.
    fn place() -> (tempfile::TempDir, Files) {
        let directory = tempfile::tempdir().expect("a directory");
        let files = Files::new(directory.path()).expect("made");
        (directory, files)
    }

    /// Something good with a few bytes changed, or cut off, or made longer.
    fn damaged(good: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
        let changes = vec((any::<proptest::sample::Index>(), any::<u8>()), 0..4);
        (changes, any::<proptest::sample::Index>(), any::<bool>(), vec(any::<u8>(), 0..8)).prop_map(move |(changes, end, cut, more)| {
            let mut bytes = good.clone();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            if cut {
                bytes.truncate(end.index(good.len()));
            }
            bytes.extend(more);
            bytes
        })
    }

    fn good_agent_data() -> Vec<u8> {
        let data = AgentData { svid: vec![vec![1, 2, 3]], bundle: vec![vec![4], vec![5]], reattestable: true, ..AgentData::default() };
        render_agent_data(&data).into_bytes()
    }

    /// As it stands on disk, but with a digest that fits whatever is behind it.
    fn follow_file(body: &[u8]) -> Vec<u8> {
        [MAGIC, &sha256(body), body].concat()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        #[test]
        fn any_bytes_in_agent_data_are_read_or_refused_with_the_name_of_the_file(
            bytes in prop_oneof![vec(any::<u8>(), 0..200), damaged(good_agent_data()), "[\\[\\]{}:,\"a-z0-9 =]{0,60}".prop_map(String::into_bytes)]
        ) {
            let (directory, files) = place();
            let path = directory.path().join("agent-data.json");
            std::fs::write(&path, &bytes).expect("written");
            if let Err(error) = files.agent_data() {
                prop_assert!(error.to_string().contains("agent-data.json"), "{}", error);
                prop_assert_eq!(std::fs::read(&path).expect("there"), bytes);
            }
        }

        #[test]
        fn any_bytes_in_the_follow_file_are_a_start_from_nothing(
            bytes in prop_oneof![vec(any::<u8>(), 0..200), vec(any::<u8>(), 0..200).prop_map(|rest| [MAGIC, &rest].concat())]
        ) {
            let (directory, files) = place();
            std::fs::write(directory.path().join("countersign-follow.state"), bytes).expect("written");
            prop_assert_eq!(files.follow("17"), None);
            files.follow_rebind("17", "18").expect("nothing to bind");
            prop_assert_eq!(files.follow("18"), None);
        }

        #[test]
        fn any_message_in_a_follow_file_with_a_good_digest_is_read_or_dropped(
            body in prop_oneof![vec(any::<u8>(), 0..100), vec(any::<u8>(), 0..100).prop_map(|rest| [b"17\n", &rest[..]].concat())]
        ) {
            let (directory, files) = place();
            std::fs::write(directory.path().join("countersign-follow.state"), follow_file(&body)).expect("written");
            let read = files.follow("17");
            prop_assert!(read.is_none() || body.starts_with(b"17"), "{:?}", read);
        }
    }
}
