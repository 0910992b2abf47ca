//! Parses the words after `election`.

use hyper::Uri;

use crate::command::{Command, Verb};

const USAGE: &str = "\
usage: prometheus-postgresql-adapter election VERB [-url=http://localhost:9201]

  status          what the adapter is
  resign          give the lead up; another one takes it
  hand-over NAME  the same, to the adapter of this name, as status shows it there
  hold            give the lead up and stay out of elections
  release         take part in elections again
  lead            take the lead (with -leader-election-rest only)

With -metrics-high-availability replicas lead, not adapters: say -cluster=NAME with
resign and with hand-over, which goes to a replica then, and with hold and release
-replica=NAME too. Any adapter to which the replica sends may be asked.

The port is that of TS_PROM_WEB_LISTEN_ADDRESS, if that is set, and the adapter's
-web-admin-token that of TS_PROM_WEB_ADMIN_TOKEN.";

/// Returns the command; `None` for help.
///
/// # Errors
///
/// The mistake, followed by the usage.
pub(super) fn parse(words: &[String], env: impl Fn(&str) -> Option<String>) -> Result<Option<Command>, String> {
    let set = |name: &str| env(name).filter(|value| !value.is_empty());
    let port = set("TS_PROM_WEB_LISTEN_ADDRESS")
        .and_then(|address| Some(address.rsplit_once(':')?.1.to_owned()))
        .unwrap_or_else(|| "9201".to_owned());
    let mut url = format!("http://localhost:{port}");
    let (mut cluster, mut replica) = (None, None);
    let mut rest = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        if !word.starts_with('-') {
            rest.push(word.as_str());
            continue;
        }
        let (flag, value) = match word.trim_start_matches('-').split_once('=') {
            Some((flag, value)) => (flag, Some(value.to_owned())),
            None => (word.trim_start_matches('-'), None),
        };
        if ["h", "help"].contains(&flag) {
            return Ok(None);
        }
        let mut value = || value.clone().or_else(|| words.next().cloned()).filter(|value| !value.is_empty());
        let mut take = |flag: &str| value().ok_or_else(|| mistake(&format!("-{flag} needs a value")));
        match flag {
            "url" => url = take(flag)?,
            "cluster" => cluster = Some(take(flag)?),
            "replica" => replica = Some(take(flag)?),
            _ => return Err(mistake(&format!("unknown flag {word:?}"))),
        }
    }
    let verb = match rest.as_slice() {
        ["status"] => Verb::Status,
        ["lead"] => Verb::Lead,
        ["resign"] => Verb::Resign,
        ["hand-over", name] => Verb::HandOver((*name).to_owned()),
        ["hold"] => Verb::Hold,
        ["release"] => Verb::Release,
        ["hand-over"] => return Err(mistake("hand over to whom?")),
        [] => return Err(mistake("do what?")),
        other => return Err(mistake(&format!("not understood: {}", other.join(" ")))),
    };
    let takes_replica = matches!(verb, Verb::Hold | Verb::Release);
    if cluster.is_some() && matches!(verb, Verb::Status | Verb::Lead)
        || replica.is_some() != (cluster.is_some() && takes_replica)
    {
        return Err(mistake("-cluster goes with resign and hand-over, and with -replica with hold and release"));
    }
    let is_usable = |url: &Uri| url.scheme_str() == Some("http") && url.host().is_some();
    let url = url.parse().ok().filter(is_usable).ok_or_else(|| mistake(&format!("{url:?} is no http://HOST:PORT")))?;
    Ok(Some(Command { url, token: set("TS_PROM_WEB_ADMIN_TOKEN"), verb, cluster, replica }))
}

/// Returns the page for `election -h`.
pub(super) fn usage() -> String {
    USAGE.to_owned()
}

fn mistake(what: &str) -> String {
    format!("{what}\n{USAGE}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str], env: &[(&str, &str)]) -> Result<Option<Command>, String> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        parse(&words, |name| Some(env.iter().find(|(known, _)| *known == name)?.1.to_owned()))
    }

    #[track_caller]
    fn check(words: &[&str], env: &[(&str, &str)], url: &str, verb: &Verb) {
        let command = parsed(words, env).unwrap().unwrap();
        assert_eq!((command.url, &command.verb), (url.parse().unwrap(), verb));
    }

    #[test]
    fn a_cluster_and_a_replica_are_named_where_replicas_lead() {
        let named = |words: &[&str]| {
            let command = parsed(words, &[])?.unwrap();
            Ok::<_, String>((command.cluster, command.replica))
        };
        assert_eq!(named(&["resign", "-cluster=eu"]), Ok((Some("eu".into()), None)));
        assert_eq!(named(&["hand-over", "b", "-cluster", "eu"]), Ok((Some("eu".into()), None)));
        assert_eq!(named(&["hold", "-cluster=eu", "-replica=a"]), Ok((Some("eu".into()), Some("a".into()))));
        for wrong in [&["hold", "-cluster=eu"][..], &["hold", "-replica=a"], &["lead", "-cluster=eu"]] {
            assert!(named(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn verbs_and_where_to() {
        check(&["status"], &[], "http://localhost:9201", &Verb::Status);
        check(&["hand-over", "db:1", "-url", "http://[::1]:1"], &[], "http://[::1]:1", &Verb::HandOver("db:1".into()));
        check(&["--url=http://a:1/", "hold"], &[], "http://a:1/", &Verb::Hold);
        check(&["lead"], &[("TS_PROM_WEB_LISTEN_ADDRESS", ":9202")], "http://localhost:9202", &Verb::Lead);
    }

    #[test]
    fn the_token_is_not_shown() {
        let command = parsed(&["resign"], &[("TS_PROM_WEB_ADMIN_TOKEN", "hush")]).unwrap().unwrap();
        assert!(command.token.as_deref() == Some("hush") && !format!("{command:?}").contains("hush"));
    }

    #[test]
    fn mistakes_come_with_the_usage() {
        for wrong in [&["hand-over"][..], &[], &["resign", "now"], &["-x", "hold"], &["hold", "-url=x"], &["-url"]] {
            let mistake = parsed(wrong, &[]).unwrap_err();
            assert!(mistake.ends_with(USAGE), "{mistake}");
        }
        assert!(parsed(&["-h"], &[]).unwrap().is_none());
    }
}
