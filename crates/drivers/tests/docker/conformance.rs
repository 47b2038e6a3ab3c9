//! The conformance suite on a real Docker Engine: both backends, runc and gVisor.

use crate::support::hands::check;
use crate::support::{idle_mover, shared_config};
use perennial_drivers::for_each_case;

macro_rules! on_docker {
    ($($module:ident: $($name:ident)*;)*) => {
        mod overlay_runc { $($(tests!($name, Overlay, "runc");)*)* }
        mod overlay_runsc { $($(tests!($name, Overlay, "runsc");)*)* }
        mod engine_runc { $($(tests!($name, Engine, "runc");)*)* }
        mod engine_runsc { $($(tests!($name, Engine, "runsc");)*)* }
        mod by_mover_runc { $($(by_mover!($name);)*)* }
    };
}

macro_rules! tests {
    ($name:ident, $backend:ident, $runtime:literal) => {
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            let config = super::shared_config(&[$runtime]);
            super::check(stringify!($name), perennial_core::spec::Backend::$backend, $runtime, config).await;
        }
    };
}

/// The engine's own volumes, which this process may not touch.
macro_rules! by_mover {
    ($name:ident) => {
        #[tokio::test(flavor = "multi_thread")]
        async fn $name() {
            let config = perennial_drivers::docker::DockerConfig {
                mover_binary: Some(super::idle_mover()),
                volume_access: perennial_drivers::docker::VolumeAccess::Mover,
                ..super::shared_config(&["runc"])
            };
            super::check(stringify!($name), perennial_core::spec::Backend::Engine, "runc", config).await;
        }
    };
}

for_each_case!(on_docker);
