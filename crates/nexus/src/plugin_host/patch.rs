//! A change as a JSON merge patch (RFC 7396). Pure. It never says what may be changed: the daemon does.

use serde_json::{Map, Value};

/// The patch that makes `after` of `before`; `None` when they are the same. Arrays are replaced whole, and
/// a key that is gone is null, which is also all that such a patch can say of one that became null.
pub(super) fn between(before: &Value, after: Value) -> Option<Value> {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => of_objects(before, after).map(Value::Object),
        (before, after) => (*before != after).then_some(after),
    }
}

fn of_objects(before: &Map<String, Value>, after: Map<String, Value>) -> Option<Map<String, Value>> {
    let gone = before.keys().filter(|key| !after.contains_key(key.as_str()));
    let mut patch: Map<String, Value> = gone.map(|key| (key.clone(), Value::Null)).collect();
    for (key, value) in after {
        let change = match before.get(&key) {
            Some(before) => between(before, value),
            None => (!value.is_null()).then_some(value),
        };
        if let Some(change) = change {
            patch.insert(key, change);
        }
    }
    (!patch.is_empty()).then_some(patch)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::collection::{btree_map, vec};
    use proptest::prelude::{Strategy, any, prop_assert_eq, prop_oneof, proptest};
    use serde_json::json;

    /// MergePatch of RFC 7396, section 2.
    fn apply(target: Value, patch: Value) -> Value {
        let Value::Object(patch) = patch else { return patch };
        let mut target = match target {
            Value::Object(target) => target,
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => Map::new(),
        };
        for (key, change) in patch {
            let old = target.remove(&key).unwrap_or(Value::Null);
            if !change.is_null() {
                target.insert(key, apply(old, change));
            }
        }
        Value::Object(target)
    }

    /// Without null, which a patch can't set.
    fn values() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![any::<bool>().prop_map(Value::from), any::<i32>().prop_map(Value::from), "[a-c]{0,3}".prop_map(Value::from)];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                vec(inner.clone(), 0..4).prop_map(Value::Array),
                btree_map("(a|b|__proto__)", inner, 0..4).prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn the_patch_makes_the_one_of_the_other(before in values(), after in values()) {
            match between(&before, after.clone()) {
                Some(patch) => prop_assert_eq!(apply(before, patch), after),
                None => prop_assert_eq!(before, after),
            }
        }
    }

    #[test]
    fn only_what_changed_is_in_it() {
        let before = json!({ "event": { "content": "a", "metadata": { "x": 1, "y": [1, 2] } }, "status": "waiting" });
        let after = json!({ "event": { "content": "b", "metadata": { "y": [1] } }, "status": "waiting" });
        let patch = json!({ "event": { "content": "b", "metadata": { "x": null, "y": [1] } } });
        assert_eq!(between(&before, after), Some(patch));
        assert_eq!(between(&before, before.clone()), None);
        assert_eq!(between(&json!({}), json!({ "__proto__": { "x": 1 } })), Some(json!({ "__proto__": { "x": 1 } })));
        assert_eq!(between(&json!({ "a": 1 }), json!({ "a": null })), Some(json!({ "a": null })));
        assert_eq!(between(&json!({}), json!({ "a": null })), None);
    }
}
