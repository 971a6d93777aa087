//! The settings and their schema, for people and editors.

use serde_json::{Value, json};

use crate::Config;

/// All settings as they are in force, secrets as `***`.
pub fn effective(config: &Config) -> Value {
    // Plain data with text keys always becomes JSON.
    serde_json::to_value(config).unwrap_or_default()
}

/// The JSON Schema of the file, from the types that read it. Editors take it from a `$schema` key.
pub fn schema() -> Value {
    let mut schema = schemars::schema_for!(Config).to_value();
    allow_include(&mut schema);
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.insert("$schema".into(), json!({ "type": "string" }));
    }
    schema
}

/// Every object may draw on other files.
fn allow_include(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            object.values_mut().for_each(allow_include);
            if let Some(Value::Object(properties)) = object.get_mut("properties") {
                let path = json!({ "type": "string" });
                properties.insert("$include".into(), json!({ "anyOf": [path, { "type": "array", "items": path }] }));
            }
        }
        Value::Array(items) => items.iter_mut().for_each(allow_include),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}
