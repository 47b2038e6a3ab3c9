//! What is shipped has the numbers that were asked for.

use std::collections::BTreeSet;
use std::path::Path;

use perennial_core::service::{AccessMode, PlanProfile, ServiceName};
use perennial_core::spec::Profile;

use super::super::*;

/// The shipped service of this name.
fn shipped(name: &str) -> Service {
    let name = ServiceName::parse(name).expect("a name");
    Files::shipped().kept.get(&name).unwrap_or_else(|| panic!("{name} is not shipped")).service.clone()
}

/// The one volume of a plan, as path, written size, bytes, and the pod's quota.
fn volume_of(service: &str, plan: &str) -> (String, String, u64, Option<u64>) {
    let service = shipped(service);
    let plan = service.plan(plan).unwrap_or_else(|| panic!("{plan} is not shipped")).clone();
    let [volume] = plan.volumes() else { panic!("{plan:?}") };
    let size = volume.size.clone().expect("a size");
    (volume.mount_path.clone(), size.written, size.bytes, plan.pod_spec().resources.disk)
}

fn as_shipped(path: &str, written: &str, bytes: u64) -> (String, String, u64, Option<u64>) {
    (path.to_owned(), written.to_owned(), bytes, Some(bytes))
}

#[test]
fn every_shipped_service_is_good_and_becomes_pods() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../catalogue");
    let files: BTreeSet<String> = std::fs::read_dir(directory)
        .expect("the directory")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .collect();
    assert_eq!(files, SHIPPED.iter().map(|(file, _)| (*file).to_owned()).collect(), "all of them are in the binary");
    for (file, text) in SHIPPED {
        let service = read_toml(text).unwrap_or_else(|mistakes| panic!("{file}: {mistakes:?}"));
        assert_eq!(format!("{}.toml", service.name), file);
        assert!(!service.description.is_empty(), "{file}");
        for plan in &service.plans {
            assert_eq!(plan.pod_spec().validate(), Ok(()), "{file}: {}", plan.name);
        }
    }
    assert_eq!(Files::shipped().kept.len(), SHIPPED.len());
}

#[test]
fn s2_03_to_s2_07_a_volume_has_size_path_name_class_and_mode() {
    let n8n = shipped("n8n");
    let sizes: Vec<String> = n8n.plans.iter().map(|p| p.volumes()[0].size.clone().expect("a size").written).collect();
    assert_eq!(sizes, ["250Mi", "500Mi", "1Gi"]);
    for plan in &n8n.plans {
        let volume = &plan.volumes()[0];
        assert_eq!((volume.mount_path.as_str(), volume.name.as_str()), ("/home/node/.n8n", "n8n-data"));
        assert_eq!(volume.storage_class.as_deref(), Some("local-path"));
        assert_eq!(volume.access_mode, AccessMode::ReadWriteOnce);
    }
    assert_eq!(shipped("ghost").plans[0].volumes()[0].name, "ghost-data");
}

#[test]
fn s2_12_n8n_basic_has_250mi() {
    assert_eq!(volume_of("n8n", "basic"), as_shipped("/home/node/.n8n", "250Mi", 250 << 20));
}

#[test]
fn s2_13_n8n_plus_has_500mi() {
    assert_eq!(volume_of("n8n", "plus"), as_shipped("/home/node/.n8n", "500Mi", 500 << 20));
}

#[test]
fn s2_14_n8n_pro_has_1gi() {
    assert_eq!(volume_of("n8n", "pro"), as_shipped("/home/node/.n8n", "1Gi", 1 << 30));
}

#[test]
fn s2_15_ghost_basic_has_500mi() {
    assert_eq!(volume_of("ghost", "basic"), as_shipped("/var/lib/ghost/content", "500Mi", 500 << 20));
    let env = &shipped("ghost").plans[0].pod_spec().env;
    assert!(
        env["database__connection__filename"].starts_with("/var/lib/ghost/content/"),
        "the database is in the volume"
    );
}

#[test]
fn s2_16_wordpress_free_has_250mi_and_says_where_its_database_is() {
    assert_eq!(volume_of("wordpress", "free"), as_shipped("/var/www/html", "250Mi", 250 << 20));
    let said = shipped("wordpress").description;
    assert!(said.contains("DATABASE IS NOT IN THE POD") && said.contains("does\nnot capture"), "{said}");
}

#[test]
fn s4_02_vscode_and_s4_03_spreadsheet_have_their_limits() {
    for (name, nano_cpus, memory, reservation) in
        [("vscode", 2_000_000_000, 2048_u64, 512_u64), ("spreadsheet", 1_500_000_000, 1536, 384)]
    {
        let plan = &shipped(name).plans[0];
        let limits = plan.pod_spec().resources;
        assert_eq!(limits.nano_cpus, Some(nano_cpus), "{name}");
        assert_eq!(limits.memory, Some(memory << 20), "{name}");
        assert_eq!(limits.memory_reservation, Some(reservation << 20), "{name}");
        let written = plan.resources.memory.clone().expect("a limit").written;
        assert_eq!(written, format!("{memory}Mi"));
        assert_eq!(plan.secrets().count(), 1, "{name}: its secret is made for each pod");
    }
}

#[test]
fn x_06_a_personal_vm_comes_in_four_sizes_with_one_quota_each() {
    let dev = shipped("dev");
    let sizes: Vec<_> = dev
        .plans
        .iter()
        .map(|plan| {
            let spec = plan.pod_spec();
            assert_eq!(spec.profile, Profile::Universal, "no volume has a share of its own");
            let limits = spec.resources;
            (plan.name.to_string(), limits.nano_cpus, limits.memory, limits.disk)
        })
        .collect();
    let tier = |name: &str, cpus: u64, memory: u64, disk: u64| {
        (name.to_owned(), Some(cpus * 1_000_000_000), Some(memory << 30), Some(disk << 30))
    };
    assert_eq!(
        sizes,
        [tier("small", 1, 2, 20), tier("medium", 2, 4, 40), tier("large", 4, 8, 80), tier("xlarge", 8, 16, 160)]
    );
}

#[test]
fn s2_45_every_plan_that_is_shipped_with_volumes_has_a_quota() {
    for service in Files::shipped().kept.values().map(|kept| &kept.service) {
        for plan in service.plans.iter().filter(|plan| plan.profile != PlanProfile::Universal) {
            assert!(plan.pod_spec().resources.disk.is_some(), "{} {}", service.name, plan.name);
        }
    }
}
