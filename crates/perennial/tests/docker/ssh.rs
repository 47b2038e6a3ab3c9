//! A server whose engine is behind SSH.

use crate::installation::{BUSYBOX, Docker, Installation, assert_same, fill, tree};
use crate::sshd::{Sshd, eventually};

#[test]
fn runc_a_pod_lives_on_an_engine_behind_ssh_and_a_killed_server_leaves_no_ssh() {
    let (sshd, docker) = (Sshd::start(), Docker::shared());
    let address = sshd.address(&docker.host);
    let mut arguments = vec!["--docker-host", &address];
    let options = sshd.options();
    arguments.extend(options.iter().flat_map(|option| ["--docker-ssh-option", option.as_str()]));
    let mut installation = Installation::on(docker, &arguments);

    let pod = installation.pod(BUSYBOX, "runc");
    fill(&installation, &pod);
    let before = tree(&installation, &pod);
    installation.run(&pod, "stop");
    installation.assert_released(&pod);
    installation.run(&pod, "start");
    assert_same(&before, &tree(&installation, &pod));

    let lost = installation.container(&pod);
    installation.docker.run(&["rm", "--force", &lost]);
    let found = installation.replaced(&pod, &lost);
    assert_same(&before, &tree(&installation, &pod));

    // Nobody but the system tells that it is gone: the next operation waits for the next ssh.
    sshd.kill_client();
    installation.run(&pod, "pause");
    installation.run(&pod, "start");
    assert_eq!(installation.container(&pod), found);

    installation.kill_server();
    installation.start_server();
    let owners = || sshd.clients().into_iter().map(|(_, parent, _)| parent).collect::<Vec<_>>();
    eventually("one ssh, the new server's", || owners() == [installation.server_pid()]);
    assert_same(&before, &tree(&installation, &pod));
    installation.stop_server();
    eventually("no ssh is left", || sshd.clients().is_empty());
}
