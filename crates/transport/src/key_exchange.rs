//! How the two ends of a TLS connection agree on its key: as their best allows, or by nothing that a quantum computer could
//! undo later (`require_pq_kem`).
//!
//! Without the setting X25519MLKEM768 is used with whoever knows it. With it, TLS 1.3 and a hybrid of a curve and ML-KEM are
//! demanded; SPIRE's third one, SecP384r1MLKEM1024, is not in the library.

use std::io;
use std::sync::{Arc, LazyLock};

use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::{AlertDescription, Error, PeerIncompatible, SupportedProtocolVersion, version};

/// The setting, in the words of both configurations.
const SETTING: &str = "experimental.require_pq_kem";

/// What both ends must know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum KeyExchange {
    /// The best that both know.
    #[default]
    Any,
    /// A hybrid of a curve and ML-KEM.
    PostQuantum,
}

impl KeyExchange {
    /// Says in SPIRE's words, at the start, that the setting is on.
    pub fn log(self) {
        match self {
            Self::Any => {}
            Self::PostQuantum => tracing::debug!(
                "Experimental option 'require_pq_kem' is enabled; all TLS connections will require use of a post-quantum safe KEM"
            ),
        }
    }

    pub(crate) fn provider(self) -> Arc<CryptoProvider> {
        static ANY: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| Arc::new(aws_lc_rs::default_provider()));
        static POST_QUANTUM: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
            let kx_groups = vec![kx_group::X25519MLKEM768, kx_group::SECP256R1MLKEM768];
            Arc::new(CryptoProvider { kx_groups, ..aws_lc_rs::default_provider() })
        });
        match self {
            Self::Any => Arc::clone(&ANY),
            Self::PostQuantum => Arc::clone(&POST_QUANTUM),
        }
    }

    pub(crate) fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        static ANY: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];
        static POST_QUANTUM: [&SupportedProtocolVersion; 1] = [&version::TLS13];
        match self {
            Self::Any => &ANY,
            Self::PostQuantum => &POST_QUANTUM,
        }
    }

    /// What a TLS configuration demands.
    pub(crate) fn of(provider: &Arc<CryptoProvider>) -> Self {
        if Arc::ptr_eq(provider, &Self::PostQuantum.provider()) { Self::PostQuantum } else { Self::Any }
    }

    /// Why a handshake failed, if that can be the setting's doing.
    pub(crate) fn blame(self, error: &io::Error) -> Option<io::Error> {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        match (self, tls) {
            (Self::PostQuantum, Some(tls)) if may_lack_key_exchange(tls) => Some(io::Error::new(
                error.kind(),
                format!("{tls}; `{SETTING}` is set, and the other end may know no post-quantum key exchange or no TLS 1.3"),
            )),
            (Self::PostQuantum | Self::Any, _) => None,
        }
    }
}

/// Whether this is how a handshake ends in which the two have no version or no key exchange in common.
fn may_lack_key_exchange(error: &Error) -> bool {
    matches!(
        error,
        Error::PeerIncompatible(
            PeerIncompatible::NoKxGroupsInCommon
                | PeerIncompatible::NamedGroupsExtensionRequired
                | PeerIncompatible::KeyShareExtensionRequired
                | PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled
                | PeerIncompatible::ServerDoesNotSupportTls12Or13
                | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
        ) | Error::AlertReceived(
            AlertDescription::HandshakeFailure | AlertDescription::ProtocolVersion | AlertDescription::InsufficientSecurity
        )
    )
}

#[cfg(test)]
mod tests;
