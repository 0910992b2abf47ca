//! rustls as libpq's `sslmode` wants it.
