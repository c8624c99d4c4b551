//! The wire: generated messages and services, conversions to and from the words in `types`, error to status and
//! back, and typed clients. The hub and a node know each other only through this crate.

/// The Container Storage Interface 1.12, unchanged.
#[allow(
    clippy::all,
    clippy::restriction,
    clippy::pedantic,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    let_underscore_drop,
    reason = "generated"
)]
pub mod csi {
    /// Messages and services of package `csi.v1`.
    #[allow(
        missing_debug_implementations,
        clippy::all,
        clippy::pedantic,
        unreachable_pub,
        unused_qualifications
    )]
    pub mod v1 {
        tonic::include_proto!("csi.v1");
    }
}

/// Ours.
#[allow(
    clippy::all,
    clippy::restriction,
    clippy::pedantic,
    missing_debug_implementations,
    unreachable_pub,
    unused_qualifications,
    let_underscore_drop,
    reason = "generated"
)]
pub mod opensail {
    /// The Volume Hub.
    pub mod hub {
        /// Messages and services of package `opensail.hub.v1`.
        pub mod v1 {
            tonic::include_proto!("opensail.hub.v1");
        }
    }
    /// One node.
    pub mod node {
        /// Messages and services of package `opensail.node.v1`.
        pub mod v1 {
            tonic::include_proto!("opensail.node.v1");
        }
    }
    /// Files of a volume.
    pub mod files {
        /// Messages and services of package `opensail.files.v1`.
        pub mod v1 {
            tonic::include_proto!("opensail.files.v1");
        }
    }
}

pub use opensail::{files::v1 as files, hub::v1 as hub, node::v1 as node};

pub mod client;
pub mod convert;
pub mod metrics;
pub mod server;
pub mod settings;
pub mod status;
