//! A second server that follows a first one.

use std::os::unix::fs::chown;

use crate::guard::Directory;
use crate::port;
use crate::postgres::{Postgres, text};

impl Postgres {
    /// Starts a hot standby that follows this server, asynchronously, with the same settings.
    ///
    /// # Panics
    ///
    /// When it cannot be made.
    pub async fn follow(&self) -> Postgres {
        let directory = Directory::new("pg-replica");
        if let Some((uid, gid)) = self.account {
            chown(directory.path(), Some(uid), Some(gid)).expect("cannot give the directory to the server's account");
        }
        let (programs, account) = (self.programs.clone(), self.account);
        let mut replica = Postgres { server: None, directory, programs, account, port: port::free() };
        let (data, source) = (replica.data_directory(), self.socket_directory().to_owned());
        let port = self.port.to_string();
        let arguments = ["-U", "postgres", "--checkpoint=fast", "--no-sync", "--write-recovery-conf"];
        let places = ["-h", text(&source), "-p", &port, "-D", text(&data)];
        replica.run("pg_basebackup", &arguments, &places).await;
        // Two servers cannot share a Unix socket's directory once the first one's is gone.
        let settings = data.join("rig.conf");
        let written = std::fs::read_to_string(&settings).expect("the copy has no settings");
        let own = format!("{written}unix_socket_directories = '{}'\n", replica.socket_directory().display());
        std::fs::write(&settings, own).expect("cannot write the copy's settings");
        replica.start_again().await;
        replica
    }
}
