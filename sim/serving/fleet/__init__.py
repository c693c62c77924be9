"""Several engines under one trace: routers, pools, failures."""
