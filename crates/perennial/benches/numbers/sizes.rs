//! What pods take on the host, in bytes that are allocated.

use serde_json::json;

use super::installation::{DEBIAN, Docker, Installation, allocated};
use super::table;

pub fn run() -> Vec<String> {
    let server = Installation::on(Docker::shared(), &[]);
    let overlay = server.pod_with("overlay", DEBIAN, "runc", json!({"backend": "overlay"}));
    let engine = server.pod_with("engine", DEBIAN, "runc", json!({"backend": "docker"}));
    let mut rows = vec![row("the image's tree, one for all pods", allocated(&server.storage().join("images")))];
    let mut both = |when: &str| {
        rows.push(row(&format!("{when}: overlay volumes, all of them"), allocated(&server.set(&overlay))));
        let volumes = ["workspace", "home", "root", "etc", "usr-local", "opt", "var", "srv"];
        let bytes = volumes.iter().map(|v| allocated(&server.mountpoint(&engine, v))).sum();
        rows.push(row(&format!("{when}: eight Docker volumes, seeded from the image"), bytes));
    };
    both("a new pod");
    for pod in [&overlay, &engine] {
        server.sh(
            pod,
            "dpkg --install /usr/share/perennial-test/perennial-hello_1.deb >/dev/null && head -c 100M /dev/urandom >/workspace/file",
        );
    }
    both("a package and 100 MB of files later");
    server.snapshot(&overlay);
    rows.push(row("the repository after a snapshot: image, package, files", allocated(&server.repository())));
    table::print("Sizes: MB on the host", &["", "MB"], &rows);
    Vec::new()
}

fn row(what: &str, bytes: u64) -> Vec<String> {
    #[expect(clippy::cast_precision_loss, reason = "megabytes")]
    let megabytes = bytes as f64 / 1e6;
    vec![what.to_owned(), format!("{megabytes:.2}")]
}
