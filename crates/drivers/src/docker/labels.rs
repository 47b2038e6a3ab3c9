//! The labels that decide ownership. Names are for people.

use std::collections::HashMap;

use perennial_core::id::{InstallationId, PodId};
use perennial_core::spec::TenantId;
use perennial_core::volume::SetNumber;

pub(super) const INSTALLATION: &str = "io.perennial.installation";
pub(super) const POD: &str = "io.perennial.pod";
pub(super) const TENANT: &str = "io.perennial.tenant";
pub(super) const VOLUME: &str = "io.perennial.volume";
pub(super) const SET: &str = "io.perennial.set";
/// Specification generation of a container.
pub(super) const GENERATION: &str = "io.perennial.generation";
/// Something a driver made for itself; its value is its own name.
pub(super) const SCRATCH: &str = "io.perennial.scratch";
/// `complete` on the volume that marks a set of engine volumes as complete.
pub(super) const MARKER: &str = "io.perennial.marker";

/// The labels of something.
pub(super) type Labels = HashMap<String, String>;

/// Labels that say only whose installation it is.
pub(super) fn of_installation(installation: InstallationId) -> Labels {
    HashMap::from([(INSTALLATION.to_owned(), installation.to_string())])
}

/// Labels of a tenant's network.
pub(super) fn of_tenant(installation: InstallationId, tenant: &TenantId) -> Labels {
    let mut labels = of_installation(installation);
    labels.insert(TENANT.to_owned(), tenant.to_string());
    labels
}

/// Labels of anything that belongs to a set.
pub(super) fn of_set(installation: InstallationId, tenant: &TenantId, pod: PodId, set: SetNumber) -> Labels {
    let mut labels = of_tenant(installation, tenant);
    labels.insert(POD.to_owned(), pod.to_string());
    labels.insert(SET.to_owned(), set.to_string());
    labels
}

/// Labels of scratch.
pub(super) fn of_scratch(installation: InstallationId, name: &str) -> Labels {
    let mut labels = of_installation(installation);
    labels.insert(SCRATCH.to_owned(), name.to_owned());
    labels
}

/// Whether these labels are of this installation.
pub(super) fn is_ours(labels: &Labels, installation: InstallationId) -> bool {
    labels.get(INSTALLATION) == Some(&installation.to_string())
}

/// The pod that these labels name, if they are of this installation and not of scratch.
pub(super) fn pod_of(labels: &Labels, installation: InstallationId) -> Option<PodId> {
    // Labels of the image are inherited, so a pod's container says explicitly that it is no scratch.
    let scratch = labels.get(SCRATCH).is_some_and(|name| !name.is_empty());
    if !is_ours(labels, installation) || scratch {
        return None;
    }
    labels.get(POD)?.parse().ok()
}

/// The set that these labels name.
pub(super) fn set_of(labels: &Labels) -> Option<SetNumber> {
    labels.get(SET)?.parse().ok()
}

/// A filter of the engine's API for exact labels.
pub(super) fn filter(pairs: &[(&str, &str)]) -> HashMap<String, Vec<String>> {
    HashMap::from([("label".to_owned(), pairs.iter().map(|(k, v)| format!("{k}={v}")).collect())])
}
