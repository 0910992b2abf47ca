//! What this adapter says of itself: to a probe, a program, a person.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use crate::election::role::Role;
use crate::http::Service;

/// Why no write can be taken; `None` when it can, as leader or as standby. With `-pg-read-only`: reads.
pub(super) fn not_ready(service: &Service) -> Option<String> {
    if service.stopping.is_cancelled() {
        return Some("stopping".into());
    }
    if service.store.get().is_none() {
        return Some("the database has not been reached yet".into());
    }
    match service.role_now() {
        _ if service.read_only => None,
        // One whose Prometheus is silent takes its next write as leader or standby, whichever it turns out to be.
        Role::Leader { .. } | Role::Standby { .. } | Role::Resigned => None,
        role => Some(format!("the role is {}", role.word())),
    }
}

/// Brings those metrics up to date that are a matter of time.
pub(super) fn refresh(service: &Service) {
    let now = Instant::now();
    let role = service.role_now();
    service.metrics.set_role(role.word());
    if let Some(last) = service.heard.read().last() {
        let ago = now.saturating_duration_since(last);
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        service.metrics.last_write_request_timestamp_seconds.set(since.saturating_sub(ago).as_secs_f64());
    }
}

/// For programs; fields are only ever added.
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
        "read_only": service.read_only,
        "prometheus_timeout_seconds": heard.timeout().map(|timeout| timeout.as_secs_f64()),
        "seconds_since_write_request": heard.last().map(|last| last.elapsed().as_secs_f64()),
    })
    .to_string()
}

/// For people.
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
    let group = service.group.as_deref().map_or("no election".to_owned(), escape);
    let ready = not_ready(service).map_or("yes".to_owned(), |why| format!("no: {}", escape(&why)));
    let heard = service.heard.read();
    let last = heard.last().map_or("none yet".to_owned(), |last| format!("{:.1} s ago", last.elapsed().as_secs_f64()));
    let timeout =
        heard.timeout().map_or("never resigns".to_owned(), |timeout| format!("{:.1} s", timeout.as_secs_f64()));
    let telemetry = escape(&service.config.telemetry_path);
    format!(
        "<!DOCTYPE html><html lang=\"en\"><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{role_word} · prometheus-postgresql-adapter</title>\
         <style>body{{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:44rem;padding:0 1rem}}\
         th{{text-align:left;padding-right:2rem;font-weight:normal;color:#555}}td{{font-weight:600}}</style>\
         <h1>prometheus-postgresql-adapter {version}</h1><table>\
         <tr><th>Role</th><td>{role_word}{who}</td></tr><tr><th>Group</th><td>{group}</td></tr>\
         <tr><th>Ready for writes</th><td>{ready}</td></tr><tr><th>Last write request</th><td>{last}</td></tr>\
         <tr><th>Prometheus timeout</th><td>{timeout}</td></tr></table>\
         <p><a href=\"{telemetry}\">metrics</a> · <a href=\"/status.json\">status.json</a> · <a href=\"/-/ready\">ready</a> · \
         <a href=\"/-/healthy\">healthy</a><p>Prometheus writes to <code>/write</code> and reads from <code>/read</code>.</html>",
        role_word = role.word().replace('_', " "),
        version = env!("CARGO_PKG_VERSION"),
    )
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
