//! The loop of examples/kubernetes/lease, with a script that behaves like the API server for one Lease.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rig::adapter::Adapter;
use rig::guard::Directory;
use rig::process::Process;

use super::rest::put;
use super::{Member, check_stored};
use crate::setup::{Database, SOON, adapter_at, skipped};

/// One Lease in a file: its version and its holder. A replacement must name the current version.
const KUBECTL: &str = r#"#!/bin/sh
exec 9>"$LEASE_FILE.lock"; flock 9
case $1 in
get) [ ! -e "$LEASE_FILE" ] || cat "$LEASE_FILE" ;;
create|replace)
    said=$(cat)
    holder=$(printf %s "$said" | sed -n 's/.*"holderIdentity": "\([^"]*\)".*/\1/p')
    version=$(printf %s "$said" | sed -n 's/.*"resourceVersion": "\([^"]*\)".*/\1/p')
    known=$(cut -d/ -f1 "$LEASE_FILE" 2>/dev/null)
    [ "$version" = "$known" ] || exit 1
    printf %s "$((known + 1))/$holder" >"$LEASE_FILE" ;;
esac
"#;

fn elect(directory: &Path, member: &Adapter, name: &str) -> Process {
    let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/kubernetes/lease/elect.sh");
    let mut command = Command::new("sh");
    let path = std::env::var("PATH").unwrap_or_default();
    command
        .arg(script)
        .env("PATH", format!("{}:{path}", directory.display()))
        .env("LEASE_FILE", directory.join("lease"))
        .env("ADAPTER", member.url(""))
        // The adapter takes the place of the Prometheus. Its own `/-/ready` depends on its role, so `/healthz` is
        // asked: the `?` turns the `/-/ready` that the script appends into a query string.
        .env("PROMETHEUS", member.url("/healthz?"))
        .envs([("LEASE", "pair"), ("IDENTITY", name), ("LEASE_SECONDS", "2"), ("PERIOD_SECONDS", "0.3")]);
    Process::spawn(&format!("elector {name}"), command)
}

#[tokio::test]
async fn a_lease_moves_the_lead() {
    if ["curl", "flock"].iter().any(|program| Command::new(program).arg("--version").output().is_err()) {
        skipped("no curl or flock");
        return;
    }
    let db = Database::new().await;
    let directory = Directory::new("lease");
    let kubectl = directory.path().join("kubectl");
    std::fs::write(&kubectl, KUBECTL).expect("cannot write a script");
    std::fs::set_permissions(&kubectl, PermissionsExt::from_mode(0o755)).expect("cannot make it run");
    let uri = db.server.uri(&db.name);
    let options = |name| adapter_at(&uri).name(name).arg("-leader-election-rest");
    let a = Member::start(&options("adapter a"), "a").await;
    let elector_a = elect(directory.path(), &a.adapter, "a");
    a.wait("leader").await;
    a.takes().await;
    let b = Member::start(&options("adapter b"), "b").await;
    let elector_b = elect(directory.path(), &b.adapter, "b");
    b.wait("standby").await;
    // An orderly end: the lead moves immediately.
    elector_a.terminate(SOON).await;
    b.wait("leader").await;
    b.takes().await;
    // The loop dies without a notice: the lead moves when the Lease has expired. The order to the other adapter is
    // later, and wins.
    let elector_a = elect(directory.path(), &a.adapter, "a");
    elector_b.kill9().await;
    a.wait("leader").await;
    b.wait("standby").await;
    // A wrong order that contradicts the Lease. The loop corrects it.
    assert_eq!(put(&b.adapter, "1").await.status, 200);
    a.wait("leader").await;
    b.wait("standby").await;
    elector_a.wait_for_log("has the lease", SOON).await;
    for (member, series) in [(&a, "a"), (&b, "b")] {
        member.sender.pause();
        check_stored(&db.client, member, series).await;
    }
}
