//! Messages on the wire: the generated code of our .proto files, and every conversion between it and `identity`.
//!
//! Nothing else lives here: no handler, no IO. The modules mirror the protobuf packages, because generated code refers
//! to its neighbours by relative path. `cargo xtask gen` rewrites `gen/`; a test compares.

mod convert;

pub use convert::{ConvertError, bundle, denial, entry, federation, id, log_level, mask};

/// Descriptors of all messages, for output by field names.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/all.fds");

/// The Workload API, which has no package.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, reason = "generated")]
pub mod workload {
    include!("gen/_.rs");

    /// Descriptor of the service, for server reflection.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/workload.fds");
}

/// SPIRE's packages.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, reason = "generated")]
pub mod spire {
    pub mod api {
        pub mod types {
            include!("gen/spire.api.types.rs");
        }
        pub mod server {
            pub mod agent {
                pub mod v1 {
                    include!("gen/spire.api.server.agent.v1.rs");
                }
            }
            pub mod bundle {
                pub mod v1 {
                    include!("gen/spire.api.server.bundle.v1.rs");
                }
            }
            pub mod entry {
                pub mod v1 {
                    include!("gen/spire.api.server.entry.v1.rs");
                }
            }
            pub mod svid {
                pub mod v1 {
                    include!("gen/spire.api.server.svid.v1.rs");
                }
            }
            pub mod debug {
                pub mod v1 {
                    include!("gen/spire.api.server.debug.v1.rs");
                }
            }
            pub mod logger {
                pub mod v1 {
                    include!("gen/spire.api.server.logger.v1.rs");
                }
            }
            pub mod trustdomain {
                pub mod v1 {
                    include!("gen/spire.api.server.trustdomain.v1.rs");
                }
            }
            pub mod localauthority {
                pub mod v1 {
                    include!("gen/spire.api.server.localauthority.v1.rs");
                }
            }
        }
        pub mod agent {
            pub mod logger {
                pub mod v1 {
                    include!("gen/spire.api.agent.logger.v1.rs");
                }
            }
            pub mod delegatedidentity {
                pub mod v1 {
                    include!("gen/spire.api.agent.delegatedidentity.v1.rs");
                }
            }
        }
    }
    pub mod agent {
        pub mod debug {
            pub mod v1 {
                include!("gen/spire.agent.debug.v1.rs");
            }
        }
    }
}

/// Envoy's packages, as far as its Secret Discovery Service needs them.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, reason = "generated")]
pub mod envoy {
    pub mod r#type {
        pub mod v3 {
            include!("gen/envoy.r#type.v3.rs");
        }
    }
    pub mod config {
        pub mod core {
            pub mod v3 {
                include!("gen/envoy.config.core.v3.rs");
            }
        }
    }
    pub mod extensions {
        pub mod transport_sockets {
            pub mod tls {
                pub mod v3 {
                    include!("gen/envoy.extensions.transport_sockets.tls.v3.rs");
                }
            }
        }
    }
    pub mod service {
        pub mod discovery {
            pub mod v3 {
                include!("gen/envoy.service.discovery.v3.rs");
            }
        }
        pub mod secret {
            pub mod v3 {
                include!("gen/envoy.service.secret.v3.rs");

                /// Descriptor of the service, for server reflection.
                pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/sds.fds");
            }
        }
    }
}

/// Google's package that Envoy's refers to.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, reason = "generated")]
pub mod google {
    pub mod rpc {
        include!("gen/google.rpc.rs");
    }
}

/// Our own packages.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub, reason = "generated")]
pub mod countersign {
    pub mod agent {
        pub mod v1 {
            include!("gen/countersign.agent.v1.rs");
        }
        pub mod admin {
            pub mod v1 {
                include!("gen/countersign.agent.admin.v1.rs");
            }
        }
    }
    pub mod entry {
        pub mod v1 {
            include!("gen/countersign.entry.v1.rs");
        }
    }
    pub mod journal {
        pub mod v1 {
            include!("gen/countersign.journal.v1.rs");
        }
    }
}

pub use countersign::{agent::admin::v1 as agent_admin, agent::v1 as node, entry::v1 as explained, journal::v1 as journal};
pub use envoy::config::core::v3 as envoy_core;
pub use envoy::extensions::transport_sockets::tls::v3 as envoy_tls;
pub use envoy::service::{discovery::v3 as discovery, secret::v3 as secret_discovery};
pub use envoy::r#type::v3 as envoy_type;
pub use spire::agent::debug::v1 as agent_debug;
pub use spire::api::agent::{delegatedidentity::v1 as delegated_identity, logger::v1 as agent_logger};
pub use spire::api::server::{
    agent::v1 as agent, bundle::v1 as bundle_api, debug::v1 as debug, entry::v1 as entry_api, localauthority::v1 as local_authority,
    logger::v1 as logger, svid::v1 as svid, trustdomain::v1 as trust_domain,
};
pub use spire::api::types;
