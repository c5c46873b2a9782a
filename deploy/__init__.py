"""Running Linnet outside a cluster, and the checks and generated files of a deployment.

embedded        a Valkey server, or a cluster of six, as child processes
plan            the plan of `make up`, made before a process is started
local           `make up`: one embedded Valkey, one router, two gateways, in the foreground
stack           `make stack`: the set-up of compose.yaml (load balancer, Prometheus, Alertmanager) without containers
names           the stack's name server
alerts          the stack's receiver of alerts
prepare         secrets and a certificate for set-ups without any
limits          `make limits`: the tables of limits
settings_table  `make settings`: the table of settings
tables          tables between two comments of a page
web             `make web`: files of the web page that are others' work
dashboards      the Grafana dashboards, from grafana/dashboards.yaml
pictures        the dashboards as pictures
manifests       the rendered manifests of k8s/, and `make k8s`
check           `make deploy-check`: Dockerfile and manifests
check_stack     `make deploy-check`: load balancers, alerts, dashboards, compose file
image           the container image, built without a registry
slots           where the partitions of a Redis cluster are, and moving them; a server that becomes a cluster
slot_plans      which slots each primary should have, and which may move
cluster         `make k8s-check`: the manifests on a real cluster
kubernetes/     a Kubernetes of its own for `make deploy-check`
"""
