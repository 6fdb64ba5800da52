//! `unix`: user, groups and, if asked for, the program of a process, from the kernel. See `README.md` here.

mod accounts;

use std::io::Read as _;
use std::time::Instant;

use aws_lc_rs::digest;
use countersign_config::{ConfigError, Section};
use countersign_identity::{Selector, key};
use countersign_transport::peer::Peer;

use super::{AttestorError, WorkloadAttestor};
use crate::Pending;
use accounts::{Accounts, Unknown};

/// Its configuration name.
pub const NAME: &str = "unix";
/// Longest `/proc/<pid>/status` read; 65,536 supplementary groups fit.
const STATUS_BYTES_MAX: u64 = 1 << 20;

/// The workload attestor `unix`.
#[derive(Debug)]
pub struct Unix {
    discover_workload_path: bool,
    /// Programs larger than this are refused; 0 is no limit, negative means they are never hashed.
    workload_size_limit: i64,
    accounts: Accounts,
}

impl Unix {
    /// From its `plugin_data`.
    ///
    /// # Errors
    /// A wrong or unknown setting.
    pub fn configure(mut data: Section) -> Result<Self, ConfigError> {
        let discover_workload_path = data.boolean("discover_workload_path")?.is_some_and(|b| b.value);
        let workload_size_limit = data.integer("workload_size_limit")?.map_or(0, |n| n.value);
        data.finish()?;
        Ok(Self { discover_workload_path, workload_size_limit, accounts: Accounts::default() })
    }

    /// What can be found at once, and the IDs whose names cannot.
    fn look(&self, pid: u32) -> Result<Looked, String> {
        let status = Status::read(pid)?;
        let mut found = vec![format!("uid:{}", status.uid), format!("gid:{}", status.gid)];
        found.extend(status.groups.iter().map(|gid| format!("supplementary_gid:{gid}")));
        let mut unknown = Unknown::default();
        let names = self.names(&status, &mut unknown);
        if self.discover_workload_path {
            let exe = format!("/proc/{pid}/exe");
            let path = std::fs::read_link(&exe).map_err(|e| format!("cannot read the program's path: {e}"))?;
            found.push(format!("path:{}", path.display()));
            if self.workload_size_limit >= 0 {
                found.push(format!("sha256:{}", hash(&exe, self.workload_size_limit)?));
            }
        }
        if unknown.is_empty() {
            found.extend(names);
            return Ok(Looked { found, open: None });
        }
        Ok(Looked { found, open: Some((status, unknown)) })
    }

    /// Selectors with names, as far as they are known now.
    fn names(&self, status: &Status, unknown: &mut Unknown) -> Vec<String> {
        let now = Instant::now();
        let mut found = Vec::new();
        found.extend(self.accounts.user(status.uid, now, unknown).map(|name| format!("user:{name}")));
        found.extend(self.accounts.group(status.gid, now, unknown).map(|name| format!("group:{name}")));
        for gid in &status.groups {
            found.extend(self.accounts.group(*gid, now, unknown).map(|name| format!("supplementary_group:{name}")));
        }
        found
    }
}

impl WorkloadAttestor for Unix {
    fn name(&self) -> &'static str {
        NAME
    }

    fn attest<'a>(&'a self, peer: &'a Peer) -> Pending<'a, Result<Vec<Selector>, AttestorError>> {
        Box::pin(async move {
            tracing::trace!(hop = "finds selectors");
            // Reading /proc takes microseconds; hashing a program may take a second and must not hold others up.
            let looked =
                if self.discover_workload_path { tokio::task::block_in_place(|| self.look(peer.pid)) } else { self.look(peer.pid) };
            let failed = |reason| AttestorError { name: NAME, reason };
            let Looked { mut found, open } = looked.map_err(failed)?;
            if let Some((status, unknown)) = open {
                self.accounts.ask(&unknown).await;
                found.extend(self.names(&status, &mut Unknown::default()));
            }
            let found: Result<Vec<Selector>, String> =
                found.iter().map(|value| Selector::new(NAME, value).map_err(|e| e.to_string())).collect();
            let found = found.map_err(failed)?;
            // INVARIANT: what was read belongs to the peer only if it still lives after the reading.
            if peer.is_alive() { Ok(found) } else { Err(AttestorError { name: NAME, reason: "the process has ended".to_owned() }) }
        })
    }
}

/// What a look found: values of selectors, and whose names are still to be asked for.
struct Looked {
    found: Vec<String>,
    open: Option<(Status, Unknown)>,
}

/// What `/proc/<pid>/status` says: effective IDs (the second of each list) and supplementary groups.
struct Status {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl Status {
    fn read(pid: u32) -> Result<Self, String> {
        // One read suffices for nearly all.
        let mut text = String::with_capacity(4096);
        std::fs::File::open(format!("/proc/{pid}/status"))
            .and_then(|f| f.take(STATUS_BYTES_MAX).read_to_string(&mut text))
            .map_err(|e| format!("cannot read the status of process {pid}: {e}"))?;
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).ok_or_else(|| format!("the status has no `{name}`"));
        let effective = |name: &str| {
            field(name)?.split_ascii_whitespace().nth(1).and_then(|n| n.parse().ok()).ok_or_else(|| format!("`{name}` has no effective ID"))
        };
        Ok(Self {
            uid: effective("Uid:")?,
            gid: effective("Gid:")?,
            groups: field("Groups:")?.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect(),
        })
    }
}

fn hash(exe: &str, size_limit: i64) -> Result<String, String> {
    let failed = |e: std::io::Error| format!("cannot read the program: {e}");
    let mut file = std::fs::File::open(exe).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    if size_limit > 0 && size > size_limit.unsigned_abs() {
        return Err(format!("the program has {size} bytes, more than workload_size_limit = {size_limit}"));
    }
    let mut context = digest::Context::new(&digest::SHA256);
    let mut buffer = vec![0; 64 << 10];
    loop {
        let read = file.read(&mut buffer).map_err(failed)?;
        if read == 0 {
            return Ok(key::hex(context.finish().as_ref()));
        }
        context.update(buffer.get(..read).unwrap_or_default());
    }
}

#[cfg(test)]
mod tests;
