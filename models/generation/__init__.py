"""Language models that answer token by token: state, prefix, sampling."""
