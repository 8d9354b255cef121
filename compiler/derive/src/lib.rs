//! `#[derive(Batch)]` makes a structure of tensors the data of a step. `#[derive(Results)]` makes one the results of a
//! step.
//!
//! ```ignore
//! #[derive(tpc::Batch, Clone, Debug)]
//! struct Images {
//!     pixels: Tensor<4>,
//!     labels: Tensor<1, Int>,
//!     weights: Option<Tensor<1>>,
//!     #[batch(skip)]
//!     files: Vec<String>,
//! }
//!
//! #[derive(tpc::Results)]
//! struct Scores {
//!     loss: Tensor<1>,
//!     scores: Tensor<2>,
//! }
//! ```

use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote};
use syn::spanned::Spanned;
use syn::{Data, DeriveInput, Error, Field, Fields, Index, Member, parse_macro_input};

/// Implements `tpc::Batch` and `tpc::BatchData` for a structure.
///
/// A field is a tensor of any rank and kind, an `Option`, `Vec` or tuple of such fields, or a structure that derives
/// `Batch` itself. Its name in the program is the name of the field; inside another structure it is the path,
/// `inner.field`. A field with `#[batch(skip)]` does not belong to the program: it is cloned into the batch that the
/// closure receives.
#[proc_macro_derive(Batch, attributes(batch))]
pub fn derive_batch(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    batch(&input).unwrap_or_else(Error::into_compile_error).into()
}

fn batch(input: &DeriveInput) -> Result<TokenStream, Error> {
    let Data::Struct(data) = &input.data else {
        return Err(Error::new(input.ident.span(), "only a structure can be a batch: give it a field for each tensor"));
    };
    let (mut recorded, mut shown) = (Vec::new(), Vec::new());
    for (position, field) in data.fields.iter().enumerate() {
        let member = member(position, field);
        if is_skipped(field)? {
            recorded.push(quote! { #member: ::core::clone::Clone::clone(&self.#member) });
            continue;
        }
        let name = name(&member);
        let ty = &field.ty;
        let path = format_ident!("path", span = Span::mixed_site());
        let named = quote! { let #path = ::tpc::derived::field_name(name, #name); };
        recorded.push(quote! {
            #member: { #named <#ty as ::tpc::Batch>::record(&self.#member, ::core::option::Option::Some(&#path), inputs) }
        });
        shown.push(quote! {
            { #named <#ty as ::tpc::BatchData>::show(&self.#member, ::core::option::Option::Some(&#path), fields); }
        });
    }
    let ident = &input.ident;
    let (impl_generics, ty_generics, where_clause) = input.generics.split_for_impl();
    let body = match &data.fields {
        Fields::Unit => quote! { Self },
        _ => quote! { Self { #(#recorded),* } },
    };
    Ok(quote! {
        #[automatically_derived]
        impl #impl_generics ::tpc::Batch for #ident #ty_generics #where_clause {
            type Tensors = Self;

            #[allow(unused_variables)]
            fn record(
                &self,
                name: ::core::option::Option<&str>,
                inputs: &mut ::tpc::derived::Inputs,
            ) -> Self {
                #body
            }
        }

        #[automatically_derived]
        impl #impl_generics ::tpc::BatchData for #ident #ty_generics #where_clause {
            #[allow(unused_variables)]
            fn show<'batch>(
                &'batch self,
                name: ::core::option::Option<&str>,
                fields: &mut ::tpc::derived::BatchFields<'batch>,
            ) {
                #(#shown)*
            }
        }
    })
}

/// Implements `tpc::Tensors` and `tpc::Results` for a structure, so that a closure may return it and a step returns it
/// with values.
///
/// A field is a tensor of any rank and kind, an `Option`, `Vec` or tuple of such fields, or a structure that derives
/// `Results` itself.
#[proc_macro_derive(Results)]
pub fn derive_results(input: proc_macro::TokenStream) -> proc_macro::TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    results(&input).unwrap_or_else(Error::into_compile_error).into()
}

fn results(input: &DeriveInput) -> Result<TokenStream, Error> {
    let Data::Struct(data) = &input.data else {
        return Err(Error::new(input.ident.span(), "only a structure can be results: give it a field for each tensor"));
    };
    let (mut leaves, mut forms, mut made, mut restored) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for (position, field) in data.fields.iter().enumerate() {
        let (member, ty) = (member(position, field), &field.ty);
        let name = name(&member);
        let at = Index { index: position as u32, span: field.span() };
        leaves.push(quote! {
            ::tpc::Tensors::leaves(
                &self.#member,
                ::core::option::Option::Some(&::tpc::derived::field_name(prefix, #name)),
                out,
            );
        });
        forms.push(quote! { <#ty as ::tpc::Results>::Form });
        made.push(quote! { ::tpc::Results::form(&self.#member) });
        restored.push(quote! { #member: <#ty as ::tpc::Results>::restore(&form.#at, values) });
    }
    let ident = &input.ident;
    let (impl_generics, ty_generics, where_clause) = input.generics.split_for_impl();
    Ok(quote! {
        #[automatically_derived]
        impl #impl_generics ::tpc::Tensors for #ident #ty_generics #where_clause {
            #[allow(unused_variables)]
            fn leaves(
                &self,
                prefix: ::core::option::Option<&str>,
                out: &mut ::std::vec::Vec<::tpc::derived::Leaf>,
            ) {
                #(#leaves)*
            }
        }

        #[automatically_derived]
        impl #impl_generics ::tpc::Results for #ident #ty_generics #where_clause {
            type Values = Self;
            type Form = (#(#forms,)*);

            fn form(&self) -> Self::Form {
                (#(#made,)*)
            }

            #[allow(unused_variables)]
            fn restore(form: &Self::Form, values: &mut ::tpc::ResultValues) -> Self {
                Self { #(#restored),* }
            }
        }
    })
}

/// The name of a field in the program.
fn name(member: &Member) -> String {
    match member {
        Member::Named(name) => name.to_string().trim_start_matches("r#").to_owned(),
        Member::Unnamed(index) => index.index.to_string(),
    }
}

fn member(position: usize, field: &Field) -> Member {
    match &field.ident {
        Some(name) => Member::Named(name.clone()),
        None => Member::Unnamed(Index { index: position as u32, span: field.span() }),
    }
}

/// Whether the field has `#[batch(skip)]`.
fn is_skipped(field: &Field) -> Result<bool, Error> {
    let mut skipped = false;
    for attribute in field.attrs.iter().filter(|attribute| attribute.path().is_ident("batch")) {
        attribute.parse_nested_meta(|meta| match meta.path.is_ident("skip") {
            true => {
                skipped = true;
                Ok(())
            }
            false => Err(meta.error("unknown option of a batch field: only `skip` exists")),
        })?;
    }
    Ok(skipped)
}
