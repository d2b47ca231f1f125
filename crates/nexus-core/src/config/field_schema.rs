//! The JSON schema of one section, put together key by key. It describes; it never validates.

use schemars::Schema;
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::ops::RangeInclusive;

/// The schema of a section while its keys are added.
#[derive(Debug)]
pub(crate) struct ObjectSchema {
    description: String,
    properties: Map<String, Value>,
    required: Vec<Value>,
}

impl ObjectSchema {
    pub(crate) fn new(docs: &[&str]) -> Self {
        Self { description: prose(docs), properties: Map::new(), required: Vec::new() }
    }

    pub(crate) fn add(&mut self, key: &str, field: FieldSchema) {
        if field.required {
            self.required.push(Value::from(key));
        }
        self.properties.insert(key.to_owned(), field.schema.to_value());
    }

    pub(crate) fn finish(self) -> Schema {
        let Self { description, properties, required } = self;
        let mut object = Map::new();
        object.insert("type".to_owned(), Value::from("object"));
        object.insert("description".to_owned(), Value::from(description));
        object.insert("properties".to_owned(), Value::Object(properties));
        if !required.is_empty() {
            object.insert("required".to_owned(), Value::Array(required));
        }
        Schema::from(object)
    }
}

/// The schema of one key: its type's, with its meaning, default and range.
#[derive(Debug)]
pub(crate) struct FieldSchema {
    schema: Schema,
    required: bool,
}

impl FieldSchema {
    pub(crate) fn new<T: Serialize>(mut schema: Schema, docs: &[&str], default: &T) -> Self {
        schema.insert("description".to_owned(), Value::from(prose(docs)));
        if let Ok(default) = serde_json::to_value(default)
            && !default.is_null()
        {
            schema.insert("default".to_owned(), default);
        }
        Self { schema, required: false }
    }

    pub(crate) fn within<T: Serialize>(mut self, range: &RangeInclusive<T>) -> Self {
        self.schema.insert("minimum".to_owned(), json!(range.start()));
        self.schema.insert("maximum".to_owned(), json!(range.end()));
        self
    }

    /// A required key has no default; an example takes its place.
    pub(crate) fn required(mut self, example: &str) -> Self {
        self.schema.remove("default");
        self.schema.insert("examples".to_owned(), json!([example]));
        self.required = true;
        self
    }
}

/// The schema of a closed set of words.
pub(crate) fn words(docs: &[&str], words: &[&str]) -> Schema {
    let mut object = Map::new();
    object.insert("type".to_owned(), Value::from("string"));
    object.insert("description".to_owned(), Value::from(prose(docs)));
    object.insert("enum".to_owned(), json!(words));
    Schema::from(object)
}

/// Doc comment lines as one paragraph.
fn prose(docs: &[&str]) -> String {
    docs.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ").trim().to_owned()
}
