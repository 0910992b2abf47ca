//! A second server that replicates from a first one.

use std::os::unix::fs::chown;

use crate::guard::Directory;
use crate::port;
use crate::postgres::{Postgres, START_DEADLINE, text};

impl Postgres {
    /// Starts a hot standby that replicates from this server asynchronously, with the same settings.
    ///
    /// # Panics
    ///
    /// If the standby cannot be created.
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
        // Two servers cannot share the directory of a Unix socket once the first server's directory is removed.
        let settings = data.join("rig.conf");
        let written = std::fs::read_to_string(&settings).expect("the copy has no settings");
        let own = format!("{written}unix_socket_directories = '{}'\n", replica.socket_directory().display());
        std::fs::write(&settings, own).expect("cannot write the copy's settings");
        replica.start_again().await;
        replica
    }

    /// On a replica: waits until it has replayed everything that `primary` has written, and then stops replication.
    ///
    /// # Panics
    ///
    /// If either wait takes longer than a minute.
    pub async fn stop_following(&self, primary: &Self) {
        let (primary, replica) = (primary.connect("postgres").await, self.connect("postgres").await);
        let has_all = "SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn";
        let now = primary.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.expect("a primary has a position");
        let now: String = now.get(0);
        let poll = async || replica.query_one(has_all, &[&now]).await.ok()?.get::<_, bool>(0).then_some(());
        self.process().wait_until("the replica has all", START_DEADLINE, poll).await;
        for statement in ["ALTER SYSTEM SET primary_conninfo = ''", "SELECT pg_reload_conf()"] {
            replica.batch_execute(statement).await.expect("a superuser may");
        }
        let is_cut_off = "SELECT NOT EXISTS (SELECT FROM pg_stat_wal_receiver)";
        let poll = async || replica.query_one(is_cut_off, &[]).await.ok()?.get::<_, bool>(0).then_some(());
        self.process().wait_until("the replica receives nothing", START_DEADLINE, poll).await;
    }

    /// On a replica: promotes it to primary.
    ///
    /// # Panics
    ///
    /// If this server is not a replica.
    pub async fn promote(&self) {
        let client = self.connect("postgres").await;
        client.batch_execute("SELECT pg_promote()").await.expect("a replica can be promoted");
    }
}
