//! The two macros that define a configuration section and a set of words once, and derive from that
//! one definition the type, its defaults, its decoder, its key list and its JSON schema.
//!
//! They never validate across keys: a section names a `check` function for that.

/// The key a field has in the file: its own name, unless it is a Rust keyword and says another.
macro_rules! key_of {
    ($field:ident) => {
        stringify!($field)
    };
    ($field:ident, $key:literal) => {
        $key
    };
}

/// Decodes one value by its type, by its range, or by a function of its own.
macro_rules! decode_as {
    ($node:expr, $key:expr, $faults:expr, $ty:ty) => {
        <$ty as $crate::config::decode::Decode>::decode($node, $key, $faults)
    };
    ($node:expr, $key:expr, $faults:expr, $ty:ty, in $range:expr) => {
        $crate::config::decode::number::<$ty>($node, $key, &($range), $faults)
    };
    ($node:expr, $key:expr, $faults:expr, $ty:ty, with $with:ident) => {
        $with($node, $key, $faults)
    };
    ($node:expr, $key:expr, $faults:expr, $ty:ty, in $range:expr, with $with:ident) => {
        $with($node, $key, $faults)
    };
}

/// Defines a section.
///
/// ```text
/// section! {
///     /// What the section is.
///     Name check function also(Deserialize) {
///         /// What the key means.
///         field as "key" or "alias": Type [low..=high] = default => decoder, required "example";
///     }
///     derived {
///         /// What is computed from the keys; neither read from the file nor shown.
///         other: Type = default;
///     }
/// }
/// ```
macro_rules! section {
    (
        $(#[doc = $about:literal])+
        $name:ident $(check $check:ident)? $(also($($extra:ident),+))? {
            $(
                $(#[doc = $doc:literal])+
                $field:ident $(as $key:literal)? $(or $alias:literal)? : $ty:ty $([$range:expr])?
                    = $default:expr $(=> $with:ident)? $(, required $example:literal)? ;
            )*
        }
        $(derived {
            $(
                $(#[doc = $derived_doc:literal])+
                $derived:ident : $derived_ty:ty = $derived_default:expr ;
            )*
        })?
    ) => {
        $(#[doc = $about])+
        #[derive(Debug, Clone, PartialEq, ::serde::Serialize)]
        $($(#[derive($extra)])+)?
        #[serde(default)]
        pub struct $name {
            $(
                $(#[doc = $doc])+
                $(#[serde(rename = $key)])?
                pub $field: $ty,
            )*
            $($(
                $(#[doc = $derived_doc])+
                #[serde(skip)]
                pub $derived: $derived_ty,
            )*)?
        }

        impl ::std::default::Default for $name {
            fn default() -> Self {
                Self {
                    $($field: $default,)*
                    $($($derived: $derived_default,)*)?
                }
            }
        }

        impl $crate::config::decode::Section for $name {
            const KEYS: &'static [&'static str] = &[$(key_of!($field $(, $key)?)),*];
            const ALIASES: &'static [&'static str] = &[$($($alias,)?)*];
        }

        impl $crate::config::decode::Decode for $name {
            fn decode(
                node: &$crate::config::node::Node,
                name: &str,
                faults: &mut $crate::config::problem::Faults,
            ) -> ::std::option::Option<Self> {
                if !$crate::config::decode::is_section(node, name, faults) {
                    return None;
                }
                $crate::config::decode::check_keys::<Self>(node, name, faults);
                let value = Self {
                    $($field: {
                        let key = key_of!($field $(, $key)?);
                        let aliases: &[&str] = &[$($alias)?];
                        let decoded = match $crate::config::decode::find(node, key, aliases, faults) {
                            Some(found) => decode_as!(found, key, faults, $ty $(, in $range)? $(, with $with)?),
                            None => {
                                $($crate::config::decode::missing(node, name, key, $example, faults);)?
                                None
                            }
                        };
                        match decoded {
                            Some(value) => value,
                            None => $default,
                        }
                    },)*
                    $($($derived: $derived_default,)*)?
                };
                $(let value = $check(value, node, faults);)?
                Some(value)
            }
        }

        impl ::schemars::JsonSchema for $name {
            fn schema_name() -> ::std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(generator: &mut ::schemars::SchemaGenerator) -> ::schemars::Schema {
                let defaults = <Self as ::std::default::Default>::default();
                let mut object = $crate::config::field_schema::ObjectSchema::new(&[$($about),+]);
                $(
                    let field = $crate::config::field_schema::FieldSchema::new(
                        generator.subschema_for::<$ty>(),
                        &[$($doc),+],
                        &defaults.$field,
                    );
                    $(let field = field.within::<$ty>(&($range));)?
                    $(let field = field.required($example);)?
                    object.add(key_of!($field $(, $key)?), field);
                )*
                object.finish()
            }
        }
    };
}

/// Defines a closed set of words that a key may have. The default carries `#[default]`.
macro_rules! words {
    (
        $(#[doc = $about:literal])+
        $name:ident {
            $($(#[$meta:meta])* $variant:ident = $word:literal),+ $(,)?
        }
    ) => {
        $(#[doc = $about])+
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default,
            ::serde::Serialize, ::serde::Deserialize,
        )]
        pub enum $name {
            $($(#[$meta])* #[serde(rename = $word)] $variant,)+
        }

        impl $name {
            /// Every word, as the configuration file spells it.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// The word as the configuration file spells it.
            pub fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $word,)+
                }
            }

            /// The value a word stands for; `None` for any other text.
            pub fn parse(text: &str) -> ::std::option::Option<Self> {
                match text {
                    $($word => Some(Self::$variant),)+
                    _ => None,
                }
            }
        }

        impl ::std::fmt::Display for $name {
            fn fmt(&self, f: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl $crate::config::decode::Decode for $name {
            fn decode(
                node: &$crate::config::node::Node,
                name: &str,
                faults: &mut $crate::config::problem::Faults,
            ) -> ::std::option::Option<Self> {
                $crate::config::decode::word(node, name, Self::WORDS, Self::parse, faults)
            }
        }

        impl ::schemars::JsonSchema for $name {
            fn schema_name() -> ::std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut ::schemars::SchemaGenerator) -> ::schemars::Schema {
                $crate::config::field_schema::words(&[$($about),+], Self::WORDS)
            }
        }
    };
}
