//! The status of this adapter: for a probe, a program or a person.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use crate::election::by_labels::clusters::{Clusters, Shown};
use crate::election::role::Role;
use crate::http::service::Service;

/// Returns why no write can be accepted; `None` if writes can be accepted, as leader or as standby. With
/// `-pg-read-only` the same for reads.
pub(super) fn not_ready(service: &Service) -> Option<String> {
    if service.stopping.is_cancelled() {
        return Some("stopping".into());
    }
    if service.store.get().is_none() {
        return Some("the database has not been reached yet".into());
    }
    match service.role_now() {
        _ if service.read_only => None,
        // An adapter whose Prometheus is silent accepts the next write as leader or standby, whichever it becomes.
        Role::Leader { .. } | Role::Standby { .. } | Role::ByLabels { .. } | Role::Resigned => {
            only_unsupported(service)
        }
        role => Some(format!("the role is {}", role.word())),
    }
}

/// Returns why no received sample can be stored, if that is so. By labels, one misconfigured sender is no reason as
/// long as any cluster is stored: a load balancer would remove the adapter for all clusters.
fn only_unsupported(service: &Service) -> Option<String> {
    let why = service.heard.only_unsupported()?;
    let goes_on = |clusters: &Arc<Clusters>| clusters.shown().iter().any(|cluster| !cluster.is_silent);
    if service.clusters.as_ref().is_some_and(goes_on) {
        return None;
    }
    Some(format!("the latest write request was answered 415: {why}"))
}

/// Updates the metrics that depend on the present time.
pub(super) fn refresh(service: &Service) {
    let now = Instant::now();
    let role = service.role_now();
    service.metrics.set_role(role.word());
    service.metrics.held.set(i64::from(service.is_held()));
    if let Some(clusters) = &service.clusters {
        let shown = clusters.shown();
        let silent = shown.iter().filter(|cluster| cluster.is_silent).count();
        service.metrics.clusters.set(i64::try_from(shown.len()).unwrap_or(i64::MAX));
        service.metrics.clusters_silent.set(i64::try_from(silent).unwrap_or(i64::MAX));
    }
    if let Some(last) = service.heard.read().last() {
        let ago = now.saturating_duration_since(last);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        service.metrics.last_write_request_timestamp_seconds.set(since.saturating_sub(ago).as_secs_f64());
    }
}

/// Returns the status for programs. Fields are only ever added.
pub(super) fn json(service: &Service) -> String {
    let role = service.role_now();
    let heard = service.heard.read();
    let (term, leader) = match &role {
        Role::Leader { fence, .. } => (fence.map(|fence| fence.term), None),
        Role::Standby { leader, .. } => (Some(leader.term), Some(leader.holder.clone())),
        _ => (None, None),
    };
    let lock_holder = service.lock_holder.borrow().as_ref().map(|holder| {
        serde_json::json!({
            "pid": holder.pid,
            "application_name": holder.application_name,
            "client_address": holder.client_address,
        })
    });
    serde_json::json!({
        "version": env!("CARGO_PKG_VERSION"),
        "role": role.word(),
        "ready": not_ready(service).is_none(),
        "group": service.group,
        "term": term,
        "leader": leader,
        "lock_holder": lock_holder,
        "name": service.name,
        "held": service.is_held(),
        "clusters": service.clusters.as_ref().map(clusters_json),
        "read_only": service.read_only,
        "prometheus_timeout_seconds": heard.timeout().map(|timeout| timeout.as_secs_f64()),
        "unsupported": service.heard.only_unsupported(),
        "seconds_since_write_request": heard.last().map(|last| last.elapsed().as_secs_f64()),
    })
    .to_string()
}

fn clusters_json(clusters: &Arc<Clusters>) -> Vec<serde_json::Value> {
    let seconds = |ago: Option<Duration>| ago.map(|ago| ago.as_secs_f64());
    let json = |Shown { cluster, leader, replicas, is_silent, held_out }: Shown| {
        let leader = leader.map(|leader| {
            serde_json::json!({"replica": leader.replica, "term": leader.term, "seconds_since_heard": seconds(leader.heard_ago)})
        });
        let replica = |(replica, ago): (String, Option<Duration>)| serde_json::json!({"replica": replica, "seconds_since_heard_here": seconds(ago)});
        let replicas: Vec<_> = replicas.into_iter().map(replica).collect();
        serde_json::json!({"cluster": cluster, "leader": leader, "silent": is_silent, "replicas": replicas, "held": held_out})
    };
    clusters.shown().into_iter().map(json).collect()
}

/// Returns a table row for each cluster, the silent ones first.
fn clusters_page(clusters: &Arc<Clusters>) -> String {
    let mut shown = clusters.shown();
    shown.sort_by_key(|cluster| !cluster.is_silent);
    let ago = |ago: Option<Duration>| ago.map_or("never".to_owned(), |ago| format!("{:.1} s ago", ago.as_secs_f64()));
    let row = |Shown { cluster, leader, replicas, is_silent, held_out }: &Shown| {
        let leader = leader.as_ref().map_or("nobody yet".to_owned(), |leader| {
            let silent = if *is_silent { ", silent" } else { "" };
            format!("{} (term {}{silent}), heard {}", escape(&leader.replica), leader.term, ago(leader.heard_ago))
        });
        let replicas: Vec<String> =
            replicas.iter().map(|(replica, heard)| format!("{} {}", escape(replica), ago(*heard))).collect();
        let held = held_out.iter().map(|replica| escape(replica)).collect::<Vec<_>>().join(", ");
        let held = if held.is_empty() { held } else { format!("<br>held out of elections: {held}") };
        format!("<tr><td>{}</td><td>{leader}</td><td>{}{held}</td></tr>", escape(cluster), replicas.join("<br>"))
    };
    let rows: String = shown.iter().map(row).collect();
    format!(
        "<h2>Clusters</h2><table><tr><th>Cluster</th><th>Leader</th><th>Heard by this adapter</th></tr>{rows}</table>"
    )
}

/// Returns the status page for people.
pub(super) fn page(service: &Service) -> String {
    let role = service.role_now();
    let who = match &role {
        Role::Standby { leader, .. } => format!("; {} leads (term {})", escape(&leader.holder), leader.term),
        Role::Leader { fence: Some(fence), .. } => format!(" (term {})", fence.term),
        Role::Unknown => service.lock_holder.borrow().as_ref().map_or(String::new(), |holder| {
            format!("; the lock is held by a session without a heartbeat: {}", escape(&holder.to_string()))
        }),
        _ => String::new(),
    };
    let no_group = if service.clusters.is_some() { "by labels, see below" } else { "no election" };
    let group = service.group.as_deref().map_or(no_group.to_owned(), escape);
    let held = if service.is_held() {
        "<tr><th>Elections</th><td>held out of them; <code>election release</code> ends that</td></tr>"
    } else {
        ""
    };
    let name = escape(&service.name);
    let ready = not_ready(service).map_or("yes".to_owned(), |why| format!("no: {}", escape(&why)));
    let heard = service.heard.read();
    let last = heard.last().map_or("none yet".to_owned(), |last| format!("{:.1} s ago", last.elapsed().as_secs_f64()));
    let timeout =
        heard.timeout().map_or("never resigns".to_owned(), |timeout| format!("{:.1} s", timeout.as_secs_f64()));
    let unsupported = service
        .heard
        .only_unsupported()
        .map_or(String::new(), |why| format!("<tr><th>Latest request answered 415</th><td>{}</td></tr>", escape(&why)));
    let clusters = service.clusters.as_ref().map(clusters_page).unwrap_or_default();
    let telemetry = escape(&service.config.telemetry_path);
    format!(
        "<!DOCTYPE html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{role_word} · prometheus-postgresql-adapter</title>\
         <style>body{{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:44rem;padding:0 1rem}}\
         th{{text-align:left;padding-right:2rem;font-weight:normal;color:#555}}td{{font-weight:600}}</style>\
         <h1>prometheus-postgresql-adapter {version}</h1><table>\
         <tr><th>Role</th><td>{role_word}{who}</td></tr><tr><th>Group</th><td>{group}</td></tr>\
         <tr><th>Name</th><td>{name}</td></tr>{held}\
         <tr><th>Ready for writes</th><td>{ready}</td></tr><tr><th>Last write request</th><td>{last}</td></tr>\
         {unsupported}<tr><th>Prometheus timeout</th><td>{timeout}</td></tr></table>{clusters}\
         <p><a href=\"{telemetry}\">metrics</a> · <a href=\"/status.json\">status.json</a> · <a href=\"/-/ready\">ready</a> · \
         <a href=\"/-/healthy\">healthy</a><p>Prometheus writes to <code>/write</code> and reads from <code>/read</code>.</html>",
        role_word = role.word().replace('_', " "),
        version = env!("CARGO_PKG_VERSION"),
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
