{{/* The alerts: few, on what users feel. */}}
{{- define "twinshot.alerts" -}}
groups:
  - name: twinshot
    rules:
      - alert: TwinshotLatencyHigh
        expr: |
          histogram_quantile(0.99, sum by (namespace, job, model, le) (
            rate(twinshot_request_duration_seconds_bucket{job="twinshot"}[5m]))) > {{ .latencySeconds }}
        for: 10m
        labels: {severity: warning}
        annotations:
          summary: One request in a hundred takes longer than {{ .latencySeconds }} s.
          description: The p99 of {{ "{{ $labels.model }}" }} is {{ "{{ $value | humanizeDuration }}" }}.
          runbook_url: {{ .runbook }}#twinshotlatencyhigh
      - alert: TwinshotErrors
        expr: |
          sum by (namespace, job) (rate(twinshot_requests_total{job="twinshot",outcome=~"error|timeout|unavailable"}[5m]))
          / sum by (namespace, job) (rate(twinshot_requests_total{job="twinshot",outcome!~"invalid|denied|cancelled"}[5m]))
          > {{ .errorRatio }}
        for: 5m
        labels: {severity: critical}
        annotations:
          summary: Requests end in errors that are the server's.
          description: "{{ "{{ $value | humanizePercentage }}" }} of the requests ended in error, timeout or unavailable."
          runbook_url: {{ .runbook }}#twinshoterrors
      - alert: TwinshotOverloaded
        expr: |
          sum by (namespace, job) (rate(twinshot_requests_total{job="twinshot",outcome="rejected"}[5m]))
          / sum by (namespace, job) (rate(twinshot_requests_total{job="twinshot",outcome!~"invalid|denied|cancelled"}[5m]))
          > {{ .refusedRatio }}
        for: 10m
        labels: {severity: warning}
        annotations:
          summary: More is asked for than can be drawn in time.
          description: "{{ "{{ $value | humanizePercentage }}" }} of the requests are refused with 429."
          runbook_url: {{ .runbook }}#twinshotoverloaded
      - alert: TwinshotReplicaDown
        expr: |
          up{job="twinshot"} == 0
          or twinshot_engines_available{job="twinshot"} == 0
          or absent(up{job="twinshot"})
        for: 10m
        labels: {severity: critical}
        annotations:
          summary: A replica does not answer, or has no engine that draws.
          description: {{ "'{{ with $labels.instance }}{{ $labels.namespace }} {{ . }}{{ else }}No replica is known.{{ end }}'" }}
          runbook_url: {{ .runbook }}#twinshotreplicadown
      - alert: TwinshotEngineRestarts
        expr: |
          sum by (namespace, job, pod, instance) (increase(twinshot_engine_restarts_total{job="twinshot"}[30m]))
          > {{ .engineRestarts }}
        labels: {severity: warning}
        annotations:
          summary: An engine process ends or hangs again and again.
          description: "{{ "{{ $value | humanize }} restarts in 30 minutes on {{ $labels.namespace }} {{ $labels.instance }}" }}"
          runbook_url: {{ .runbook }}#twinshotenginerestarts
{{- end }}
