//! Nothing outlives a killed owner.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rig::postgres::{Options, Postgres};
use rig::process::Process;

/// Environment variable of the copy of this test binary that is killed.
const VICTIM: &str = "RIG_VICTIM";

/// Not a test by itself: the code that the killed copy runs.
#[tokio::test]
async fn victim() {
    if std::env::var_os(VICTIM).is_none() {
        return;
    }
    let postgres = Postgres::start(Options::default()).await;
    let mut command = Command::new("sleep");
    command.arg("1000");
    let sleeper = Process::spawn("sleeper", command);
    #[expect(clippy::print_stdout, reason = "the test that started this process reads it")]
    {
        println!("started {} {} {} .", postgres.socket_directory().display(), postgres.pid(), sleeper.pid());
    }
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn everything_vanishes_with_a_killed_owner() {
    let mut command = Command::new(std::env::current_exe().expect("a test has a path"));
    command.args(["--exact", "victim", "--nocapture"]).env(VICTIM, "1");
    let owner = Process::spawn("owner", command);
    let line = owner.wait_for_log("started ", Duration::from_secs(60)).await;
    let words: Vec<&str> = line.split_once("started ").expect("waited for it").1.split(' ').collect();
    let remains: Vec<PathBuf> =
        vec![words[0].into(), format!("/proc/{}", words[1]).into(), format!("/proc/{}", words[2]).into()];
    assert!(remains.iter().all(|path| path.exists()), "{remains:?}");
    owner.kill9().await;
    let gone = async {
        while remains.iter().any(|path| is_there(path)) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(20), gone).await;
    waited.unwrap_or_else(|_| panic!("still there: {:?}", remains.iter().filter(|p| is_there(p)).collect::<Vec<_>>()));
}

/// True if the path exists. A process that has ended but is not reaped counts as gone.
fn is_there(path: &Path) -> bool {
    let state = std::fs::read_to_string(path.join("stat")).unwrap_or_default();
    let zombie = state.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'));
    path.exists() && !zombie
}
