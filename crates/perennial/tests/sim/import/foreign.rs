//! Archives of other programs: GNU tar in its formats, with holes in all the ways it can say them.

use std::os::unix::fs::FileExt as _;
use std::process::Command;

use perennial_core::spec::Backend;

use super::send::imported;
use crate::browse::desk::Desk;
use crate::world::{World, small_spec};

#[tokio::test]
async fn sim_archives_of_gnu_tar_are_read_in_every_format() {
    let world = World::new(1);
    let base = tempfile::tempdir().unwrap();
    let tree = base.path().join("tree");
    std::fs::create_dir_all(tree.join("dir")).unwrap();
    let mut expected = vec![0; 3 << 20];
    let sparse = std::fs::File::create(tree.join("sparse")).unwrap();
    sparse.set_len(expected.len() as u64).unwrap();
    // Many pieces: more than fit into one header.
    for at in (0..40).map(|n| n * 65_536) {
        sparse.write_all_at(b"x", at).unwrap();
        expected[usize::try_from(at).unwrap()] = b'x';
    }
    for (at, data) in [(1 << 20, b"data"), (2_500_000, b"more")] {
        sparse.write_all_at(data, at).unwrap();
        expected[usize::try_from(at).unwrap()..][..4].copy_from_slice(data);
    }
    std::fs::write(tree.join("dir/a"), b"a").unwrap();
    std::fs::hard_link(tree.join("dir/a"), tree.join("b")).unwrap();
    std::fs::write(tree.join(format!("dir/{}", "n".repeat(200))), b"long").unwrap();
    let old = rustix::fs::Timespec { tv_sec: -1000, tv_nsec: 0 };
    let times = rustix::fs::Timestamps { last_access: old, last_modification: old };
    rustix::fs::utimensat(rustix::fs::CWD, tree.join("b"), &times, rustix::fs::AtFlags::empty()).unwrap();
    let desk = Desk::new(&world).await;
    let pod = desk.server.running("dev", small_spec(Backend::Overlay)).await;
    for options in [
        &["--format=gnu", "--sparse"][..],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
        &["--format=gnu"],
        &["--format=posix"],
        &["--format=gnu", "-z"],
    ] {
        let file = base.path().join("archive");
        let made =
            Command::new("tar").args(options).arg("-cf").arg(&file).arg("-C").arg(&tree).arg(".").output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        let archive = std::fs::read(&file).unwrap();
        let snapshot = imported(&desk, pod, "?into=/srv/x", &archive).await;
        assert!(desk.content(snapshot, b"/srv/x/sparse").await.bytes() == expected, "{options:?}");
        let found = desk.walk(snapshot, "").await;
        assert_eq!(
            (&found["/srv/x/b"]["links"], &found["/srv/x/dir/a"]["links"]),
            (&2.into(), &2.into()),
            "{options:?}"
        );
        assert_eq!(found["/srv/x/b"]["modifiedAt"], "1969-12-31T23:43:20Z", "{options:?}");
        assert!(found.contains_key(&format!("/srv/x/dir/{}", "n".repeat(200))));
    }
}
