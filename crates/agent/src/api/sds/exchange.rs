//! What an Envoy and the agent have said to each other on a stream: what is asked for, which answer was the last, and whether a
//! request is about that one.

use std::collections::BTreeSet;

use countersign_wire::discovery::DiscoveryRequest;
use tonic::Status;

use super::SERVICE;
use super::validator::Validator;
use crate::config::RESOURCE_NAME_BYTES_MAX;

/// Most names in one request: each is looked for among the identities and bundles of the caller, and no workload has as many.
pub(super) const RESOURCE_NAMES_MAX: usize = 1024;
/// Longest list of names, and longest text of an Envoy's, in a line of the log or in a refusal: the latter travels in a header,
/// where each byte may become three, and clients read 8 KiB of those.
const SHOWN_BYTES_MAX: usize = RESOURCE_NAME_BYTES_MAX + 64;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    /// Nothing: everything there is.
    pub(super) names: BTreeSet<String>,
    /// Not looked at, only said again, as in SPIRE.
    pub(super) type_url: String,
    pub(super) validator: Validator,
}

impl Asked {
    /// What one request asks for. Who says nothing of itself is taken for who it said it was before.
    pub(super) fn read(request: DiscoveryRequest, disabled: bool, before: Option<&Self>) -> Result<Self, Status> {
        let DiscoveryRequest { resource_names, type_url, node, .. } = request;
        let is_long = |text: &String| text.len() > RESOURCE_NAME_BYTES_MAX;
        if resource_names.len() > RESOURCE_NAMES_MAX || resource_names.iter().any(is_long) || is_long(&type_url) {
            return Err(Status::invalid_argument(format!(
                "at most {RESOURCE_NAMES_MAX} resource names of at most {RESOURCE_NAME_BYTES_MAX} bytes are allowed"
            )));
        }
        let validator = match (&node, before) {
            (Some(node), _) => Validator::of(node, disabled),
            (None, Some(before)) => before.validator,
            (None, None) => Validator::configured(disabled),
        };
        let names = resource_names.into_iter().filter(|name| !name.is_empty()).collect();
        Ok(Self { names, type_url, validator })
    }
}

/// One stream's state.
#[derive(Debug)]
pub(super) struct Exchange {
    /// Whether the configuration switches SPIFFE's validator off.
    disabled: bool,
    asked: Option<Asked>,
    /// Whether the last request that counts wants an answer.
    is_due: bool,
    /// Counts changes of what the caller may have, as SPIRE's does; a change of what is asked for makes no version.
    version: u64,
    nonce: Option<String>,
    /// What of the requests about it was said since the last answer, once each: an honest Envoy refuses an answer once, and
    /// others can send as much as they like.
    said: Said,
}

/// Lines that were written since the last answer.
#[derive(Debug, Clone, Copy, Default)]
struct Said {
    other_nonce: bool,
    refused: bool,
    other_version: bool,
}

impl Exchange {
    pub(super) fn new(disabled: bool) -> Self {
        Self { disabled, asked: None, is_due: false, version: 0, nonce: None, said: Said::default() }
    }

    pub(super) fn asked(&self) -> Option<&Asked> {
        self.asked.as_ref()
    }

    pub(super) fn is_due(&self) -> bool {
        self.is_due
    }

    /// Takes a request.
    pub(super) fn hear(&mut self, request: DiscoveryRequest) -> Result<(), Status> {
        let names = shown(request.resource_names.iter().map(String::as_str));
        let (version_info, nonce) = (cut(&request.version_info), cut(&request.response_nonce));
        tracing::debug!(service = SERVICE, resource_names = names, version_info, nonce, "Received StreamSecrets request");
        if let Some(error) = &request.error_detail
            && !std::mem::replace(&mut self.said.refused, true)
        {
            let error = cut(&error.message);
            tracing::error!(service = SERVICE, resource_names = names, error, "Envoy reported errors applying secrets");
        }
        if let Some(expect) = &self.nonce {
            if *expect != request.response_nonce {
                // About an answer before the last: the one about the last is on its way.
                if !std::mem::replace(&mut self.said.other_nonce, true) {
                    tracing::warn!(service = SERVICE, nonce, expect, "Received unexpected nonce; ignoring request");
                }
                return Ok(());
            }
            let expect = self.version.to_string();
            if request.version_info != expect && !std::mem::replace(&mut self.said.other_version, true) {
                tracing::error!(service = SERVICE, version_info, expect, "Client rejected expected version and rolled back");
            }
        }
        let asked = Asked::read(request, self.disabled, self.asked.as_ref())?;
        // What was refused is not sent again before it changes.
        self.is_due |= self.asked.as_ref().is_none_or(|before| before.names != asked.names);
        self.asked = Some(asked);
        Ok(())
    }

    /// Notes an answer, and returns its version.
    pub(super) fn answered(&mut self, is_news: bool, nonce: String) -> String {
        self.version += u64::from(is_news);
        (self.nonce, self.is_due, self.said) = (Some(nonce), false, Said::default());
        self.version.to_string()
    }
}

/// Names as Go prints a list of them, which clients may match on; cut off where it gets too long.
pub(super) fn shown<'a>(names: impl ExactSizeIterator<Item = &'a str>) -> String {
    let (count, mut text) = (names.len(), String::from("["));
    for (index, name) in names.enumerate() {
        let name = format!("{name:?}");
        if text.len() + name.len() > SHOWN_BYTES_MAX {
            return format!("{text}] and {} more", count - index);
        }
        if index > 0 {
            text.push(' ');
        }
        text += &name;
    }
    text + "]"
}

/// A text of somebody else's for the log.
fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(SHOWN_BYTES_MAX)).unwrap_or_default()
}
