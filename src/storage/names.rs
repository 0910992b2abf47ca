//! Quoted names of everything in the database. Pure.

/// Names of the relations and functions of one store: `schema.table…`, each quoted and qualified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    schema: String,
    table: String,
}

impl Names {
    /// Names the store `table` in `schema`, both as an operator wrote them.
    #[must_use]
    pub fn new(schema: impl Into<String>, table: impl Into<String>) -> Self {
        Self { schema: schema.into(), table: table.into() }
    }

    /// Returns the quoted schema.
    #[must_use]
    pub fn schema(&self) -> String {
        identifier(&self.schema)
    }

    /// Returns the unquoted schema, for comparison with a catalog.
    #[must_use]
    pub fn schema_name(&self) -> &str {
        &self.schema
    }

    /// Returns the name of the view `metrics`.
    #[must_use]
    pub fn view(&self) -> String {
        self.qualified("")
    }

    /// Returns `metrics` and `suffix`, qualified and quoted: `"public"."metrics_series"`.
    #[must_use]
    pub fn qualified(&self, suffix: &str) -> String {
        format!("{}.{}", identifier(&self.schema), identifier(&self.relation(suffix)))
    }

    /// Returns `metrics` and `suffix`, unquoted, for comparison with a catalog.
    #[must_use]
    pub fn relation(&self, suffix: &str) -> String {
        format!("{}{suffix}", self.table)
    }

    /// Returns `text` with `{…}` replaced: `{schema}`, `{view}`, and `{x}` by the qualified name with the suffix `_x`;
    /// `{x:literal}` is the same as a string constant.
    #[must_use]
    pub fn sql(&self, text: &str) -> String {
        let mut filled = String::with_capacity(text.len() + 256);
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('{') {
            filled.push_str(before);
            let Some((hole, remainder)) = after.split_once('}') else {
                filled.push('{');
                rest = after;
                continue;
            };
            let (name, as_literal) = match hole.split_once(':') {
                Some((name, "literal")) => (name, true),
                _ => (hole, false),
            };
            let value = match name {
                "schema" => self.schema(),
                "view" => self.view(),
                suffix => self.qualified(&format!("_{suffix}")),
            };
            filled.push_str(&if as_literal { literal(&value) } else { value });
            rest = remainder;
        }
        filled.push_str(rest);
        filled
    }
}

/// Quotes `text` as an SQL identifier.
#[must_use]
pub fn identifier(text: &str) -> String {
    format!("\"{}\"", text.replace('"', "\"\""))
}

/// Quotes `text` as an SQL string constant, valid with any `standard_conforming_strings`.
#[must_use]
pub fn literal(text: &str) -> String {
    if text.contains('\\') {
        return format!(" E'{}'", text.replace('\\', "\\\\").replace('\'', "''"));
    }
    format!("'{}'", text.replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sql_quotes_what_it_puts_in() {
        let names = Names::new("my \"schema\"", "it's");
        assert_eq!(names.sql("{series}"), r#""my ""schema"""."it's_series""#);
        assert_eq!(names.sql("{leader:literal}"), r#"'"my ""schema"""."it''s_leader"'"#);
        assert_eq!(names.sql("{view} {schema}"), r#""my ""schema"""."it's" "my ""schema""""#);
    }

    #[test]
    fn literal_survives_backslashes() {
        assert_eq!(literal("a'b"), "'a''b'");
        assert_eq!(literal("a\\'"), " E'a\\\\'''");
    }
}
