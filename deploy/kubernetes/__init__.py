"""A real Kubernetes on one machine, built from Go modules: `make deploy-check` runs the k8s checks against it.

up           builds, starts and stops it: API server, scheduler, controllers, and nodes with containerd and kubelet
dns.py       its name server
__main__.py  packs the images, starts it, checks, stops it
"""
