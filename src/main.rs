//! The program: arguments to [`prometheus_postgresql_adapter::config::Config`], logger, app.

fn main() {}
