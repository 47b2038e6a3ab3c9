//! The store, every test on a SQLite file and on a throw-away Postgres.
//!
//! Postgres comes from `scripts/postgres.sh`; a machine without it fails the test, it is never skipped. One cluster
//! serves all cases, each in a database of its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on ends")]

mod any;
mod audit;
mod cancelled;
mod cases;
mod databases;
mod fences;
mod identities;
mod orphans;
mod quotas;
mod repositories;
mod rights;
mod services;
mod subscriptions;

use databases::{Cluster, Database};

/// Runs every case on SQLite as a test of its own, and all of them on Postgres.
macro_rules! cases {
    ($($name:ident),* $(,)?) => {
        mod sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $name() {
                    super::cases::$name(&super::Database::sqlite()).await;
                }
            )*
        }

        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn every_case_on_postgres() {
            let cluster = Cluster::start();
            $(
                // Shown when the case fails.
                println!("postgres: {}", stringify!($name));
                cases::$name(&cluster.database(stringify!($name)).await).await;
            )*
        }
    };
}

cases!(
    a_change_is_written_whole,
    a_change_that_fails_leaves_nothing,
    a_stale_pod_is_refused,
    an_insert_is_done_once,
    names_are_unique_among_living_pods,
    leases_are_exclusive_and_fenced,
    a_lost_lease_writes_nothing,
    documents_round_trip,
    events_are_numbered_in_commit_order,
    events_of_concurrent_commits_are_never_missed,
    an_ended_operation_stays_ended,
    lists_are_filtered_and_paged,
    the_newest_verified_snapshot_comes_along,
    what_depends_on_a_snapshot_is_found,
    a_purged_pod_takes_its_snapshots_along,
    pods_due_for_purge_are_found,
    idempotency_keys_are_used_once,
    what_replicas_hold_is_remembered_per_tenant_and_replica,
    what_replicas_lack_is_found_by_an_index,
    images_are_remembered_per_tenant,
    exported_keys_are_remembered_per_tenant,
    services_are_remembered_and_changed_by_whoever_read_them,
    repositories_to_prune_are_found,
    unfinished_work_on_snapshots_is_found,
    who_comes_second_to_a_snapshot_is_refused,
    of_two_at_the_same_moment_one_is_refused,
    what_is_erased_is_remembered_and_asked_for_once,
    a_tenant_is_erased_or_gets_a_pod,
    what_drills_found_is_kept_and_brings_nothing_back,
    users_tenants_and_tokens_are_remembered,
    the_audit_tells_what_became_of_users_tenants_and_tokens,
    what_a_program_said_to_a_health_check_is_in_no_audit,
    the_audit_tells_which_plans_of_a_service_changed_without_their_secrets,
    what_is_not_there_or_taken_is_refused,
    who_lost_rights_gives_none,
    a_quota_holds_whoever_asks_at_the_same_moment,
    what_a_pod_takes_counts_while_it_lives,
    subscriptions_are_remembered_and_written_by_whoever_read_them,
    a_pod_goes_no_way_that_its_subscription_forbids,
    a_message_is_made_once_and_sent_by_one,
    after_a_gap_nothing_is_destroyed_for_a_day,
    a_token_is_revoked_before_or_after_it_makes_another,
    an_erased_tenant_has_no_members_and_is_not_made_again,
    tenants_of_before_are_there_after_the_upgrade,
    taps_stop_lose_and_kill_commits,
    commits_are_announced,
    the_audit_tells_every_change_with_what_it_changed,
    the_audit_has_a_row_exactly_when_the_change_was_committed,
    the_audit_of_two_servers_is_one_chain,
    whatever_is_done_to_the_audit_is_found,
    opening_again_keeps_everything,
    a_newer_database_is_refused,
);

#[tokio::test]
async fn memory_is_a_store_of_its_own() {
    let one = Database::memory();
    let two = Database::memory();
    let (a, b) = (one.open().await, two.open().await);
    assert_ne!(a.installation(), b.installation());
    cases::a_change_is_written_whole(&one).await;
}

#[test]
fn a_database_file_is_closed_to_others() {
    use std::os::unix::fs::PermissionsExt as _;
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let database = Database::sqlite();
        let store = database.open().await;
        let pod = any::Any::new(1).pod();
        store.commit(perennial::store::Change { pod: Some(pod), ..Default::default() }).await.unwrap();
        for entry in std::fs::read_dir(database.directory().unwrap()).unwrap() {
            let entry = entry.unwrap();
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o077, 0, "{:?}", entry.path());
        }
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ends_when_a_postgres_that_hangs_does_not_say_who_its_reader_is() {
    let cluster = Cluster::start();
    rights::a_stream_ends_while_the_database_hangs(&cluster.database("hangs").await).await;
}
