"""What the paper defines: routers, dispatch, experts, and the layers."""
