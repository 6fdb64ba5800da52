//! Whether what a server finds at its start belongs together: its name in `server.id`, the authorities in the store, the
//! keys in the key manager, and the journal.
//!
//! A new trust root locks out every agent that does not know it yet, so none is made in the place of one whose key is
//! missing until an operator says so, and no key is overwritten that a store elsewhere may still need. Nothing here
//! removes anything.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use countersign_identity::key::{PublicKey, hex};
use countersign_identity::{Timestamp, TrustDomain};
use countersign_plugins::keys::KeyManagerError;
use countersign_store::{AuthorityFamily, AuthorityRecord, AuthorityState, Snapshot};

use crate::authorities::{KEY_PREFIXES, public_key};

/// What to do about a datastore or keys of SPIRE's.
pub(crate) const SPIRE_HINT: &str = "give this server an empty place of its own in both settings, connection_string of the DataStore and \
     keys_path of the KeyManager; nothing was changed. An import of a SPIRE server's entries and authorities comes later; until then its \
     agents need the new bundle and a new attestation";

/// What was found, and cannot be gone on with.
#[derive(Debug, thiserror::Error)]
pub enum Mismatch {
    /// The store's authorities need keys that are not there.
    #[error(
        "the key of X.509 authority `{id}`, in force until {until}, is not in the key manager; without it agents cannot verify this server any more"
    )]
    KeysLost {
        /// The authority.
        id: String,
        /// Its end.
        until: Timestamp,
    },
    /// Keys and journal are there, the store is empty.
    #[error("the store `{0}` is empty, but this server has issued before and still has its authority keys")]
    StoreLost(String),
    /// The key manager has keys, and nothing says that this server made them: SPIRE's key file has the same form and names.
    #[error(
        "the key manager has keys that this server did not make (`{}`), and going on would overwrite them; they may be those of a SPIRE server",
        ids.join("`, `")
    )]
    KeysForeign {
        /// Their names.
        ids: Vec<String>,
    },
    /// The keys belong to authorities that came after what the store knows, as after a restore of an old backup.
    #[error(
        "the store `{store}` is older than the authority keys: it knows no authority that can be gone on with, and not X.509 authority `{}`, whose key is here",
        ids.join("`, `")
    )]
    StoreOlder {
        /// The store.
        store: String,
        /// The authorities by whose keys agents may verify this server.
        ids: Vec<String>,
    },
    /// The journal does not answer.
    #[error("cannot look for earlier certificates of this server in the journal `{}`: {source}", path.display())]
    Journal {
        /// Its directory.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The key manager does not answer.
    #[error("cannot look at the authority keys: {0}")]
    Keys(#[from] KeyManagerError),
}

impl Mismatch {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::KeysLost { id, .. } => Some(format!(
                "put back the key file that belongs to this store, or the store that belongs to these keys; nothing was changed. If the \
                 key is gone for good, start once with `--replace-lost-authority {id}`: a new trust root is made, the old one stays in the \
                 bundle until it ends, and every agent needs the new bundle and a new attestation"
            )),
            Self::StoreLost(_) => Some(
                "look at connection_string, or put back a backup with `countersign store restore`; nothing was changed. To begin a new \
                 trust root, move the key file away: every agent needs the new bundle and a new attestation then"
                    .to_owned(),
            ),
            Self::KeysForeign { .. } => Some(SPIRE_HINT.to_owned()),
            Self::StoreOlder { ids, .. } => Some(format!(
                "put back a newer backup with `countersign store restore`, or what stood here before the last restore, which is beside the \
                 store as `….before-restore`; nothing was changed. If there is none, start once with {}: a new trust root is made, the \
                 key is overwritten, and every agent needs the new bundle and a new attestation",
                ids.iter().map(|id| format!("`--replace-lost-authority {id}`")).collect::<Vec<_>>().join(" ")
            )),
            Self::Journal { .. } | Self::Keys(_) => None,
        }
    }
}

/// What the journal says about certificates that this server had for itself: such a one is made once an authority is
/// durable, never before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Issued {
    /// There was none.
    Never,
    /// The newest was signed by this X.509 authority, the one by which agents verify this server.
    By(String),
    /// There was one, or may have been, and who signed the newest cannot be told.
    Unclear,
}

/// What there is at a start.
pub(crate) struct Found<'a> {
    /// What `server.id` says, if it is there.
    pub(crate) server_id: Option<&'a str>,
    pub(crate) snapshot: &'a Snapshot,
    pub(crate) trust_domain: &'a TrustDomain,
    pub(crate) store_path: &'a Path,
    /// The public halves of the keys, by name.
    pub(crate) keys: &'a [(String, PublicKey)],
    /// Whether keys outlive the process.
    pub(crate) keys_persist: bool,
    /// Asks the journal; only where no authority can be gone on with, since the answer may take reading a whole segment.
    pub(crate) issued: &'a (dyn Fn() -> Result<Issued, Mismatch> + Sync),
    /// Authorities whose keys or records the operator says are gone for good.
    pub(crate) given_up: &'a [String],
    pub(crate) now: Timestamp,
}

/// What is gone on with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Judged {
    /// The name to go on under; none if a new one is to be made.
    pub(crate) server_id: Option<Arc<str>>,
    /// What the operator should know.
    pub(crate) warnings: Vec<String>,
}

/// Decides what to make of what was found.
///
/// # Errors
/// Going on would replace a trust root or overwrite a key that may still be needed.
pub(crate) fn judge(found: &Found<'_>) -> Result<Judged, Mismatch> {
    let mut warnings = Vec::new();
    let live: Vec<&Arc<AuthorityRecord>> = found.snapshot.authorities().filter(|a| is_live(found, a)).collect();
    let signs = |a: &AuthorityRecord| has_key(found, a);
    // The one of the name in the file before any other, and the one that signs before the one that will.
    let rank = |a: &&Arc<AuthorityRecord>| (Some(&*a.server_id) != found.server_id, a.state != AuthorityState::Active);
    let usable = live.iter().filter(|a| signs(a)).copied().min_by_key(rank);
    let Some(usable) = usable else {
        let lost = live.iter().copied().min_by_key(rank);
        let issued = (found.issued)()?;
        let strangers = strangers(found);
        let unknown = signed_lately(&strangers, &issued);
        let is_new = found.snapshot.authorities().next().is_none() && found.snapshot.bundle(found.trust_domain.name()).is_none();
        // Before the operator is told how to give an authority up: with another server's key file in place that would overwrite it.
        if !is_new && found.keys_persist && unknown.is_empty() && are_foreign(found) {
            return Err(Mismatch::KeysForeign { ids: key_ids(found) });
        }
        if let Some(lost) = lost.filter(|a| found.keys_persist && !found.given_up.iter().any(|id| **id == *a.id)) {
            return Err(Mismatch::KeysLost { id: lost.id.to_string(), until: lost.expires_at });
        }
        let has_issued = issued != Issued::Never;
        if is_new && found.keys_persist && has_issued && found.keys.iter().any(|(id, _)| is_authority_key(id)) {
            return Err(Mismatch::StoreLost(found.store_path.display().to_string()));
        }
        // INVARIANT: the name is written before the first key is made, so where it is missing the keys are somebody else's. Test
        // `the_keys_of_a_spire_server_are_left_byte_for_byte`.
        if is_new && found.keys_persist && !has_issued && found.server_id.is_none() && !found.keys.is_empty() {
            return Err(Mismatch::KeysForeign { ids: key_ids(found) });
        }
        let kept: Vec<String> = unknown.iter().filter(|id| !found.given_up.contains(id)).cloned().collect();
        if !is_new && found.keys_persist && !kept.is_empty() {
            return Err(Mismatch::StoreOlder { store: found.store_path.display().to_string(), ids: kept });
        }
        for id in strangers.iter().filter(|id| found.given_up.contains(id)) {
            warnings.push(format!(
                "X.509 authority `{id}` is not in the store and is given up: a new trust root is made, and agents need the new bundle and a \
                 new attestation"
            ));
        }
        if let Some(lost) = lost {
            warnings.push(format!(
                "The key of X.509 authority `{}` is gone and a new trust root is made; the old one stays in the bundle until {}, and \
                 agents need the new bundle and a new attestation",
                lost.id, lost.expires_at
            ));
        } else if is_new && has_issued {
            warnings.push(
                "This server has issued before, but its store is empty and its keys are gone: a new trust root is made, and agents need the \
                 new bundle and a new attestation"
                    .to_owned(),
            );
        }
        return Ok(Judged { server_id: found.server_id.map(Arc::from), warnings });
    };
    match found.server_id {
        Some(name) if name == &*usable.server_id => {}
        Some(name) => warnings.push(format!(
            "`server.id` says `{name}`, but the store's authorities whose keys are here belong to `{}`; going on under that name, and \
             `server.id` says so from now on",
            usable.server_id
        )),
        None => warnings.push(format!(
            "`server.id` is missing; the store's authorities whose keys are here belong to `{}`, and going on under that name it is \
             written again",
            usable.server_id
        )),
    }
    for (id, _) in found.keys.iter().filter(|(id, key)| is_authority_key(id) && !is_known(found, id, key)) {
        warnings.push(format!(
            "The key manager has an authority key `{id}` that the store does not know. After a crash that is a key that was never \
             used; if an older backup of the store was put back, agents whose SVIDs it signed have to attest again"
        ));
    }
    Ok(Judged { server_id: Some(Arc::clone(&usable.server_id)), warnings })
}

/// Whether agents in the field verify this server by it, or soon will.
fn is_live(found: &Found<'_>, authority: &AuthorityRecord) -> bool {
    let published = || {
        let bundle = found.snapshot.bundle(found.trust_domain.name());
        bundle.is_some_and(|b| b.x509_authorities().iter().any(|x| x.certificate.der() == authority.public))
    };
    authority.family == AuthorityFamily::X509 && authority.state != AuthorityState::Old && authority.expires_at > found.now && published()
}

fn has_key(found: &Found<'_>, authority: &AuthorityRecord) -> bool {
    found.keys.iter().any(|(id, key)| is_of(authority, id, key))
}

/// Whether this is the key of that authority.
fn is_of(authority: &AuthorityRecord, id: &str, key: &PublicKey) -> bool {
    authority.key_id == id && public_key(authority).as_ref() == Some(key)
}

fn is_known(found: &Found<'_>, id: &str, key: &PublicKey) -> bool {
    found.snapshot.authorities().any(|a| is_of(a, id, key))
}

/// Whether there are authority keys, more than one as every server has that ever issued, and the store knows none of them. A
/// single one may be what a crash left behind.
fn are_foreign(found: &Found<'_>) -> bool {
    let mut keys = found.keys.iter().filter(|(id, _)| is_authority_key(id));
    let several = keys.clone().count() > 1;
    several && keys.all(|(id, key)| !is_known(found, id, key))
}

fn key_ids(found: &Found<'_>) -> Vec<String> {
    let mut ids: Vec<String> = found.keys.iter().map(|(id, _)| id.clone()).collect();
    ids.sort_unstable();
    ids
}

/// X.509 authorities whose keys are here and of which the store has never heard, by the names they have in the journal.
/// Those that have ended and are still in the bundle are known. Tokens' keys do not count: agents get new ones from any
/// server they can verify.
fn strangers(found: &Found<'_>) -> Vec<String> {
    let [x509, _] = KEY_PREFIXES;
    let published = |key: &PublicKey| {
        let bundle = found.snapshot.bundle(found.trust_domain.name());
        bundle.is_some_and(|b| b.x509_authorities().iter().any(|a| a.certificate.public_key == *key))
    };
    let keys = found.keys.iter().filter(|(id, key)| id.starts_with(x509) && !is_known(found, id, key) && !published(key));
    keys.map(|(_, key)| hex(&key.key_id())).collect()
}

/// Those of them by which agents may verify this server. A key that a crash or a full disk left behind before it was
/// published signed nothing, and where the journal can say so it stops no start.
fn signed_lately(strangers: &[String], issued: &Issued) -> Vec<String> {
    let may_have = |id: &&String| match issued {
        Issued::By(signer) => *id == signer,
        Issued::Never | Issued::Unclear => true,
    };
    strangers.iter().filter(may_have).cloned().collect()
}

fn is_authority_key(id: &str) -> bool {
    KEY_PREFIXES.iter().any(|prefix| id.starts_with(prefix))
}
