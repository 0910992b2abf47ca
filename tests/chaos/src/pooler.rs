//! pgbouncer in transaction mode.

use std::process::Command;

use rig::guard::Directory;
use rig::process::Process;

/// A running pgbouncer.
pub(crate) struct Pooler {
    // Ends before its directory goes.
    _process: Process,
    _directory: Directory,
}

impl Pooler {
    /// Whether there is one to run.
    pub(crate) fn is_installed() -> bool {
        program().is_some()
    }

    /// Starts one on `port` of `address`, before the server at `server_port`.
    pub(crate) fn start(address: &str, port: u16, server_port: u16) -> Self {
        let directory = Directory::new("pgbouncer");
        let config = format!(
            "[databases]\n* = host=127.0.0.1 port={server_port}\n[pgbouncer]\nlisten_addr={address}\nlisten_port={port}\n\
             unix_socket_dir=\nauth_type=any\npool_mode=transaction\ndefault_pool_size=8\nmax_client_conn=200\n\
             server_login_retry=1\nignore_startup_parameters=extra_float_digits\n"
        );
        // auth_type=any logs everybody in as the user of the connection string.
        let config = config.replace("* = host", "postgres = user=postgres dbname=postgres host");
        let file = directory.path().join("pgbouncer.ini");
        std::fs::write(&file, config).expect("cannot write pgbouncer's settings");
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(directory.path(), open).expect("cannot open pgbouncer's directory");
        let mut command = Command::new(program().expect("looked for before"));
        if rig::network::is_root() {
            // It refuses to run as root.
            command.args(["-u", "postgres"]);
        }
        command.arg(&file);
        Self { _process: Process::spawn("pgbouncer", command), _directory: directory }
    }
}

/// Debian's place for it is not in every user's PATH.
fn program() -> Option<&'static str> {
    let runs = |program: &&str| Command::new(program).arg("--version").output().is_ok();
    ["pgbouncer", "/usr/sbin/pgbouncer"].into_iter().find(runs)
}
