//! How an Envoy is to verify others: by SPIFFE's rules, or by the authorities alone.

use countersign_wire::envoy_core::Node;
use countersign_wire::envoy_core::node::UserAgentVersionType;
use prost_types::value::Kind;

/// What an Envoy's metadata may say in the place of the configuration.
const DISABLED: &str = "disable_spiffe_cert_validation";
/// The first version of Envoy whose validator keeps trust domains apart.
const VERSION_MIN: (u32, u32) = (1, 18);

/// What a validation context holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Validator {
    /// Each trust domain's authorities vouch for its own names only.
    Spiffe,
    /// Authorities that vouch for whatever they sign.
    Plain,
}

impl Validator {
    /// For an Envoy that says nothing of itself.
    pub(super) fn configured(disabled: bool) -> Self {
        if disabled { Self::Plain } else { Self::Spiffe }
    }

    /// For the Envoy that this says it is. A version that is not told is taken for a new one.
    pub(super) fn of(node: &Node, disabled: bool) -> Self {
        let metadata = node.metadata.as_ref().and_then(|metadata| metadata.fields.get(DISABLED));
        let disabled = metadata.and_then(|value| value.kind.as_ref()).and_then(truth).unwrap_or(disabled);
        let version = match &node.user_agent_version_type {
            Some(UserAgentVersionType::UserAgentBuildVersion(build)) => build.version,
            Some(UserAgentVersionType::UserAgentVersion(_)) | None => None,
        };
        let is_old = version.is_some_and(|version| (version.major_number, version.minor_number) < VERSION_MIN);
        Self::configured(disabled || is_old)
    }
}

/// The words are those of Go's `strconv.ParseBool`, which SPIRE takes; what is none of them counts as not there.
fn truth(value: &Kind) -> Option<bool> {
    match value {
        Kind::BoolValue(value) => Some(*value),
        Kind::StringValue(text) => match text.as_str() {
            "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
            "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
            _ => None,
        },
        Kind::NullValue(_) | Kind::NumberValue(_) | Kind::StructValue(_) | Kind::ListValue(_) => None,
    }
}
